import path from "node:path";

export type ImageName = "disk" | "memory";
export const imageNames: readonly ImageName[] = ["disk", "memory"];
export type FileName = "state" | "seed" | "delta";

export interface LayerFiles extends Record<ImageName | FileName, string> {
  /** Written last: where it is, the layer is whole. */
  manifest: string;
  /** Which chunks are in the layer for good, while it is still arriving. */
  arrived: string;
  /** The pack as it is transferred: each chunk's compressed bytes at its own offset. Once whole, the agent takes it into the store. */
  pack: string;
}

/** What is where in the directory of a layer. */
export function layerFiles(directory: string): LayerFiles {
  return {
    disk: path.join(directory, "disk.qcow2"),
    memory: path.join(directory, "memory.qcow2"),
    state: path.join(directory, "state"),
    seed: path.join(directory, "seed.iso"),
    delta: path.join(directory, "delta.tar"),
    manifest: path.join(directory, "manifest.json"),
    arrived: path.join(directory, "arrived"),
    pack: path.join(directory, "pack"),
  };
}

/** The images that a layer stands on, in whatever format they are; absent = zeros. */
export type LayersBelow = Partial<Record<ImageName, { file: string; format: string }>>;
