import { type FileHandle, open } from "node:fs/promises";
import type { BlockSource } from "./blockReader.ts";
import { imageNames, layerFiles } from "./layerFiles.ts";
import { blockBytes } from "./manifest.ts";
import { type OverlayIndex, type OverlayPaths, readOverlay } from "./overlay.ts";
import { qcow2Layout } from "./qcow2Layout.ts";
import { writeOverlay } from "./seal.ts";
import type { Progress, Sealed, Touch } from "./sealTypes.ts";

export interface ReorderInput extends OverlayPaths {
  /** A whole layer of this overlay. */
  layer: string;
  /** First touch first. */
  touched: Touch[];
  /** The layer of its parent, whole. */
  parentLayer?: string | undefined;
  /** Where the blobs are written. */
  directory: string;
}

/** Writes an overlay anew in the order in which its blocks were touched, from a layer: no image is compared again. */
export async function reorder(input: ReorderInput, progress: Progress): Promise<Sealed> {
  const overlay = await readOverlay(input);
  const { blocks, count } = blocksOfLayer(overlay);
  const paths = layerFiles(input.layer);
  const handles: FileHandle[] = [];
  try {
    for (const name of imageNames) if (overlay.images[name] !== undefined) handles.push(await open(paths[name], "r"));
    const { format: _format, index: _index, pack: _pack, files, ...about } = overlay.manifest;
    const content = { files: files.map(({ name }) => ({ name, path: paths[name] })), blocks: { ...blocks, handles } };
    const { touched, parentLayer } = input;
    const writing = { ...content, about, images: overlay.images, count, touched, parentLayer, effort: "small" as const };
    return await writeOverlay(writing, input.directory, progress);
  } finally {
    await Promise.all(handles.map((handle) => handle.close()));
  }
}

/** Where each block of the pack is in the files of a layer. */
function blocksOfLayer({ manifest, images, blockChunks }: OverlayIndex): { blocks: Omit<BlockSource, "handles">; count: number } {
  const last = blockChunks.at(-1);
  const count = last === undefined ? 0 : last.first + last.blocks;
  const blocks = { sources: new Uint8Array(count), blocks: new Uint32Array(count) };
  let source = 0;
  for (const name of imageNames) {
    const [index, about] = [images[name], manifest[name]];
    if (index === undefined || about === undefined) continue;
    const { slots, metadata } = qcow2Layout({ virtualBytes: about.virtualBytes, index, storedBlocks: count });
    for (const [slot, stored] of slots.entries()) {
      blocks.sources[stored] = source;
      blocks.blocks[stored] = metadata.length / blockBytes + slot;
    }
    source++;
  }
  return { blocks, count };
}
