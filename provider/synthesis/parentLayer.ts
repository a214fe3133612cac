import { type FileHandle, open, readFile } from "node:fs/promises";
import { isMissing } from "../agent/durable.ts";
import { CloudletError } from "../core/errors.ts";
import { type BlockSource, readBlocks } from "./blockReader.ts";
import { type ImageIndex, firstBlocks, zeroBlock } from "./blockIndex.ts";
import { type FileName, layerFiles } from "./layerFiles.ts";
import { blockBytes } from "./manifest.ts";
import { clustersOf } from "./qcow2Clusters.ts";

/** What is packed as its difference differs in fewer than one of so many bytes. */
const nearness = 3;
const batchBlocks = 1024;

/**
 * The layer of an overlay's parent, the base's own memory: what an overlay changes is often nearly what was there before, so
 * it is packed as the exclusive-or with that, which is mostly zeros.
 */
export class ParentLayer {
  readonly #directory: string;
  readonly #memory: FileHandle;
  /** For each block of its memory the cluster of its file that holds it, or 0. */
  readonly #clusters: Uint32Array;

  private constructor(directory: string, { memory, clusters }: { memory: FileHandle; clusters: Uint32Array }) {
    this.#directory = directory;
    this.#memory = memory;
    this.#clusters = clusters;
  }

  /** Of a layer that is whole. */
  static async open(directory: string): Promise<ParentLayer> {
    const memory = await open(layerFiles(directory).memory, "r");
    try {
      return new ParentLayer(directory, { memory, clusters: await clustersOf(memory) });
    } catch (error) {
      await memory.close();
      throw error;
    }
  }

  /** Of an overlay with this index of its memory and so many blocks: those that lie over one of the parent's. */
  over(memory: ImageIndex, count: number): Over {
    const places = firstBlocks(memory, count).map((block) => (block === zeroBlock ? 0 : (this.#clusters[block] ?? 0)));
    return new Over({ handles: [this.#memory], sources: new Uint8Array(count), blocks: places });
  }

  /** Empty where the parent has no such file. */
  async file(name: FileName): Promise<Buffer> {
    try {
      return await readFile(layerFiles(this.#directory)[name]);
    } catch (error) {
      if (isMissing(error)) return Buffer.alloc(0);
      throw error;
    }
  }

  async close(): Promise<void> {
    await this.#memory.close();
  }
}

/** Which blocks of a pack lie over a block of the parent's memory, and what is there. */
export class Over {
  readonly #source: BlockSource;

  constructor(source: BlockSource) {
    this.#source = source;
  }

  /** Whether the parent has anything itself where this block is (first). */
  has(block: number): boolean {
    return this.#source.blocks[block] !== 0;
  }

  /** Blocks that are nearly what the parent has there. */
  async near(current: BlockSource, signal: AbortSignal): Promise<Uint8Array> {
    const near = new Uint8Array(this.#source.blocks.length);
    const candidates = Uint32Array.from(near.keys()).filter((block) => this.has(block));
    for (let from = 0; from < candidates.length; from += batchBlocks) {
      signal.throwIfAborted();
      const numbers = candidates.subarray(from, from + batchBlocks);
      const [now, before] = await Promise.all([readBlocks(current, numbers), readBlocks(this.#source, numbers)]);
      for (const [position, block] of numbers.entries()) {
        const at = position * blockBytes;
        if (isNear(now.subarray(at, at + blockBytes), before.subarray(at, at + blockBytes))) near[block] = 1;
      }
    }
    return near;
  }

  /** Makes differences of blocks, and blocks of differences, in place: those of `numbers`, one after the other, that are marked. */
  async turn(raw: Buffer, numbers: Uint32Array, marked: Uint8Array): Promise<void> {
    const positions = [...numbers.keys()].filter((position) => marked[numbers[position] ?? 0] === 1);
    if (positions.length === 0) return;
    const before = await readBlocks(
      this.#source,
      Uint32Array.from(positions, (position) => numbers[position] ?? 0),
    );
    for (const [place, position] of positions.entries())
      turnBytes(
        raw.subarray(position * blockBytes, (position + 1) * blockBytes),
        before.subarray(place * blockBytes, (place + 1) * blockBytes),
      );
  }
}

export function isNear(one: Buffer, other: Buffer): boolean {
  let differences = Math.max(0, one.length - other.length);
  for (let at = 0; at < other.length && at < one.length; at++) if (one[at] !== other[at]) differences++;
  return differences * nearness < one.length;
}

/** Exclusive-or in place; beyond the other's end nothing changes. */
export function turnBytes(bytes: Buffer, other: Buffer): void {
  const end = Math.min(bytes.length, other.length);
  for (let at = 0; at < end; at++) bytes[at] = (bytes[at] ?? 0) ^ (other[at] ?? 0);
}

/** Refuses an index that takes differences from what the parent does not have. */
export function requireOver(over: Over | undefined, marked: Uint8Array): void {
  for (const [block, mark] of marked.entries())
    if (mark === 1 && over?.has(block) !== true)
      throw new CloudletError(
        "INTEGRITY",
        `the overlay's index takes block ${String(block)} for a difference from something which its parent does not have`,
      );
}
