import { type ImageIndex, zeroBlock } from "./blockIndex.ts";
import { type ImageName, imageNames } from "./layerFiles.ts";
import type { Touch } from "./sealTypes.ts";

export interface BlockOrder {
  order: Uint32Array;
  /** How many blocks at the beginning are touched before the first answer. */
  touchedBlocks: number;
  /** How many blocks at the end are dense. */
  denseBlocks: number;
}

/**
 * The order of the pack's blocks: those that are touched first, first touch first; then the others as they are numbered,
 * dense ones last. What nobody saw being touched, and is touched all the same, is code and tables rather than media.
 */
export function orderBlocks(
  images: Partial<Record<ImageName, ImageIndex>>,
  { count, touched, dense }: { count: number; touched: readonly Touch[]; dense: Uint8Array },
): BlockOrder {
  const order = new Uint32Array(count);
  const placed = new Uint8Array(count);
  let next = 0;
  for (const { image, block } of touched) {
    const index = images[image];
    const stored = index === undefined ? zeroBlock : storedBlockOf(index, block);
    if (stored === zeroBlock || placed[stored] === 1) continue;
    placed[stored] = 1;
    order[next++] = stored;
  }
  const touchedBlocks = next;
  for (let block = 0; block < count; block++) if (placed[block] === 0 && dense[block] !== 1) order[next++] = block;
  const denseBlocks = count - next;
  for (let block = 0; block < count; block++) if (placed[block] === 0 && dense[block] === 1) order[next++] = block;
  return { order, touchedBlocks, denseBlocks };
}

/** The images' indexes with the pack's blocks numbered by their place in `order`. */
export function renumber(images: Partial<Record<ImageName, ImageIndex>>, order: Uint32Array): Partial<Record<ImageName, ImageIndex>> {
  const places = new Uint32Array(order.length);
  for (const [place, block] of order.entries()) places[block] = place;
  const renumbered: Partial<Record<ImageName, ImageIndex>> = {};
  for (const name of imageNames) {
    const index = images[name];
    if (index === undefined) continue;
    const stored = index.stored.map((block) => (block === zeroBlock ? zeroBlock : (places[block] ?? zeroBlock)));
    renumbered[name] = { blocks: index.blocks, stored };
  }
  return renumbered;
}

/** The pack's block for a block of the image; `zeroBlock` also where the image has it from below. */
export function storedBlockOf({ blocks, stored }: ImageIndex, block: number): number {
  let low = 0;
  for (let high = blocks.length; low < high;) {
    const middle = (low + high) >> 1;
    if ((blocks[middle] ?? Infinity) < block) low = middle + 1;
    else high = middle;
  }
  return blocks[low] === block ? (stored[low] ?? zeroBlock) : zeroBlock;
}
