import { CloudletError } from "../core/errors.ts";

/** Stands for a block of zeros, of which nothing is in the pack. */
export const zeroBlock = 0xffffffff;

/** Which blocks of one image the overlay holds, and which block of the pack (counted from 0) each of them is. */
export interface ImageIndex {
  /** Ascending. */
  blocks: Uint32Array;
  /** For each of them a block of the pack, or `zeroBlock`. */
  stored: Uint32Array;
}

// a block costs two numbers of at most five bytes each, and one more where every other block is a difference
const maxBytesPerBlock = 15;

/** How large an index of so many blocks can be. */
export function maxIndexBytes(blocks: number): number {
  return blocks * maxBytesPerBlock;
}

/**
 * The images' blocks one after the other, as differences that are mostly zero, in LEB128: how many blocks were skipped,
 * then 0 for a block of zeros, or 1 + the zigzag distance from the block of the pack that was expected next. At the end, up to
 * the last one of them, how many blocks of the pack are no differences from the parent's, and how many then are, in turns.
 */
export function encodeIndex(images: readonly ImageIndex[], differences: Uint8Array = new Uint8Array(0)): Buffer {
  const count = images.reduce((sum, { blocks }) => sum + blocks.length, 0);
  const writer = new NumberWriter(maxIndexBytes(count));
  for (const { blocks } of images) {
    let next = 0;
    for (const block of blocks) {
      writer.put(block - next);
      next = block + 1;
    }
  }
  for (const { stored } of images) {
    let next = 0;
    for (const block of stored) {
      writer.put(block === zeroBlock ? 0 : 1 + zigzag(block - next));
      if (block !== zeroBlock) next = block + 1;
    }
  }
  for (const length of runsOf(differences)) writer.put(length);
  return writer.done();
}

/** Lengths of what is not marked and what is, in turns, up to the last mark. */
function* runsOf(marks: Uint8Array): Generator<number> {
  const end = marks.lastIndexOf(1) + 1;
  for (let [start, mark] = [0, 0]; start < end; mark = 1 - mark) {
    const next = marks.indexOf(1 - mark, start);
    const stop = next < 0 ? end : Math.min(next, end);
    yield stop - start;
    start = stop;
  }
}

/** Which block of an image each block of the pack is, the first where it is several; `zeroBlock` = none. */
export function firstBlocks({ blocks, stored }: ImageIndex, storedBlocks: number): Uint32Array {
  const found = new Uint32Array(storedBlocks).fill(zeroBlock);
  // backwards, so that the first one stays
  for (let position = blocks.length - 1; position >= 0; position--) {
    const block = stored[position] ?? zeroBlock;
    if (block !== zeroBlock) found[block] = blocks[position] ?? zeroBlock;
  }
  return found;
}

/** What an index must agree with. */
export interface IndexBounds {
  images: { name: string; blocks: number; blocksOfImage: number }[];
  /** Blocks that the pack's chunks hold. */
  storedBlocks: number;
}

export interface DecodedIndex {
  /** Of each image of the bounds. */
  images: ImageIndex[];
  /** 1 for each block of the pack that is a difference from what the parent's memory has where it is (first). */
  differences: Uint8Array;
}

/** Refuses whatever lies outside of the images or of the pack. */
export function decodeIndex(bytes: Buffer, bounds: IndexBounds): DecodedIndex {
  const reader = new NumberReader(bytes);
  const blocks = bounds.images.map((image) => decodeBlocks(reader, image));
  const used = new Uint8Array(bounds.storedBlocks);
  const stored = bounds.images.map((image) => decodeStored(reader, { ...image, used }));
  const differences = decodeDifferences(reader, bounds.storedBlocks);
  if (used.includes(0)) throw invalid(`uses no block ${String(used.indexOf(0))} of the pack`);
  const images = blocks.map((found, position) => ({ blocks: found, stored: stored[position] ?? new Uint32Array(0) }));
  return { images, differences };
}

function decodeDifferences(reader: NumberReader, storedBlocks: number): Uint8Array {
  const differences = new Uint8Array(storedBlocks);
  for (let [start, mark] = [0, 0]; !reader.atEnd; mark = 1 - mark) {
    const end = start + reader.take();
    // only the first run may be empty
    if (end > storedBlocks || (end === start && (start > 0 || mark === 1))) throw invalid("has bytes behind its end");
    differences.fill(mark, start, end);
    start = end;
  }
  return differences;
}

function decodeBlocks(reader: NumberReader, image: { name: string; blocks: number; blocksOfImage: number }): Uint32Array {
  const blocks = new Uint32Array(image.blocks);
  let next = 0;
  for (let position = 0; position < blocks.length; position++) {
    const block = next + reader.take();
    if (block >= image.blocksOfImage) throw invalid(`has a block outside of the ${image.name}: ${String(block)}`);
    blocks[position] = block;
    next = block + 1;
  }
  return blocks;
}

function decodeStored(reader: NumberReader, image: { name: string; blocks: number; used: Uint8Array }): Uint32Array {
  const stored = new Uint32Array(image.blocks);
  let next = 0;
  for (let position = 0; position < stored.length; position++) {
    const code = reader.take();
    const block = code === 0 ? zeroBlock : next + unzigzag(code - 1);
    if (block !== zeroBlock) {
      if (block < 0 || block >= image.used.length)
        throw invalid(`takes a block of the ${image.name} from outside of the pack: ${String(block)}`);
      image.used[block] = 1;
      next = block + 1;
    }
    stored[position] = block;
  }
  return stored;
}

class NumberWriter {
  readonly #bytes: Buffer;
  #length = 0;

  constructor(capacity: number) {
    this.#bytes = Buffer.allocUnsafe(capacity);
  }

  put(value: number): void {
    let rest = value;
    while (rest > 127) {
      this.#bytes[this.#length++] = (rest % 128) | 128;
      rest = Math.floor(rest / 128);
    }
    this.#bytes[this.#length++] = rest;
  }

  done(): Buffer {
    return this.#bytes.subarray(0, this.#length);
  }
}

class NumberReader {
  readonly #bytes: Buffer;
  #position = 0;

  constructor(bytes: Buffer) {
    this.#bytes = bytes;
  }

  take(): number {
    let value = 0;
    for (let factor = 1; factor <= 2 ** 35; factor *= 128) {
      const byte = this.#bytes[this.#position++];
      if (byte === undefined) throw invalid("ends too early");
      value += (byte & 127) * factor;
      if (byte < 128) return value;
    }
    throw invalid("has a number without end");
  }

  get atEnd(): boolean {
    return this.#position === this.#bytes.length;
  }
}

function zigzag(value: number): number {
  return value < 0 ? -2 * value - 1 : 2 * value;
}

function unzigzag(code: number): number {
  return code % 2 === 0 ? code / 2 : -(code + 1) / 2;
}

function invalid(what: string): CloudletError {
  return new CloudletError("INVALID", `the overlay's index ${what}`, { fix: "build or fetch the overlay again" });
}
