import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, mkdtemp, open, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { type BlockSource, readBlocks } from "./blockReader.ts";
import { type Chunk, type Manifest, blockBytes } from "./manifest.ts";
import type { Progress, SealInput } from "./sealTypes.ts";
import { Compression, type Effort } from "./compression.ts";
import type { BlockOrder } from "./packPlan.ts";
import { type Over, turnBytes } from "./parentLayer.ts";

/** What goes into a pack, in this order: the files, then the blocks. */
export interface PackContent extends BlockOrder {
  files: SealInput["files"];
  blocks: BlockSource;
  /** What is packed as its difference from the parent: which blocks, and files. */
  differences?: Differences | undefined;
  effort: Effort;
}

/** Of blocks as they are numbered before they are put in order. */
export interface Differences {
  over: Over;
  marked: Uint8Array;
  /** What the parent has, by name. */
  files: ReadonlyMap<string, Buffer>;
}

export type WrittenPack = Pick<Manifest, "pack" | "files">;

const fileChunkBytes = 4 * 1024 * 1024;
// a guest waits for one after the other, so they should be small once compressed; larger ones where that makes all of it smaller
const smallChunkBlocks = 128;
const largeChunkBlocks = 256;
const batchBytes = 8 * 1024 * 1024;
const processes = 2;

/** Where a chunk's bytes come from: a piece of a file, or the blocks from `from` to `to` of the order. */
type Part = { bytes: number } & ({ file: number; offset: number } | { from: number; to: number });

/** Writes the pack to `target`; at most two batches of chunks are in memory at a time. */
export async function writePack(content: PackContent, target: string, progress: Progress): Promise<WrittenPack> {
  const files = await Promise.all(content.files.map(async ({ name, path: file }) => ({ name, path: file, ...(await digestFile(file)) })));
  const parts = partsOf(content, files);
  const directory = await mkdtemp(path.join(path.dirname(target), "chunks-"));
  const compression = new Compression(content.effort, progress.signal);
  const writer = new ChunkWriter(await open(target, "wx", 0o600));
  try {
    const compress = async (batch: Part[], number: number): Promise<Buffer[]> => {
      progress.signal.throwIfAborted();
      const names = batch.map((_, position) => path.join(directory, `${String(number)}-${String(position)}`));
      for (const [position, part] of batch.entries()) await writeFile(names[position] ?? "", await readPart(part, content));
      const frames = await compression.compress(names.map((file, position) => ({ file, bytes: batch[position]?.bytes ?? 0 })));
      await Promise.all(names.map((name) => rm(name)));
      return frames;
    };
    for await (const [batch, frames] of inOrder(batchesOf(parts), compress)) {
      for (const [position, frame] of frames.entries()) await writer.write(frame, batch[position]?.bytes ?? 0);
    }
    const touched = parts.filter((part) => "file" in part || part.from < content.touchedBlocks).length;
    const pack = { ...(await writer.done()), touched };
    const differs = (name: string): { difference?: true } => (content.differences?.files.has(name) === true ? { difference: true } : {});
    return {
      pack,
      files: files.map(({ name, bytes, digest }, file) => ({ name, bytes, digest, chunks: chunksOf(parts, file), ...differs(name) })),
    };
  } finally {
    await writer.close();
    await rm(directory, { recursive: true, force: true });
  }
}

function partsOf({ order, touchedBlocks, denseBlocks }: PackContent, files: { bytes: number }[]): Part[] {
  const parts: Part[] = [];
  for (const [file, { bytes }] of files.entries()) {
    for (let offset = 0; offset < bytes; offset += fileChunkBytes) {
      parts.push({ file, offset, bytes: Math.min(fileChunkBytes, bytes - offset) });
    }
  }
  const cut = (start: number, end: number, step: number): void => {
    for (let from = start; from < end; from += step) {
      const to = Math.min(from + step, end);
      parts.push({ from, to, bytes: (to - from) * blockBytes });
    }
  };
  const dense = order.length - denseBlocks;
  cut(0, touchedBlocks, smallChunkBlocks);
  cut(touchedBlocks, dense, largeChunkBlocks);
  cut(dense, order.length, smallChunkBlocks);
  return parts;
}

function chunksOf(parts: Part[], file: number): number[] {
  return [...parts.entries()].filter(([, part]) => "file" in part && part.file === file).map(([chunk]) => chunk);
}

async function readPart(part: Part, { files, blocks, order, differences }: PackContent): Promise<Buffer> {
  if (!("file" in part)) {
    const numbers = order.subarray(part.from, part.to);
    const raw = await readBlocks(blocks, numbers);
    await differences?.over.turn(raw, numbers, differences.marked);
    return raw;
  }
  const file = files[part.file];
  const handle = await open(file?.path ?? "", "r");
  try {
    const { buffer } = await handle.read(Buffer.alloc(part.bytes), 0, part.bytes, part.offset);
    const before = differences?.files.get(file?.name ?? "");
    if (before !== undefined) turnBytes(buffer, before.subarray(part.offset));
    return buffer;
  } finally {
    await handle.close();
  }
}

function* batchesOf(parts: Part[]): Generator<Part[]> {
  let batch: Part[] = [];
  let bytes = 0;
  for (const part of parts) {
    batch.push(part);
    bytes += part.bytes;
    if (bytes < batchBytes) continue;
    yield batch;
    [batch, bytes] = [[], 0];
  }
  if (batch.length > 0) yield batch;
}

/** Works at several items at a time, and gives the results in the items' order. */
async function* inOrder<T, R>(items: Iterable<T>, work: (item: T, number: number) => Promise<R>): AsyncGenerator<[T, R]> {
  const running: [T, Promise<R>][] = [];
  let number = 0;
  try {
    for (const item of items) {
      const result = work(item, number++);
      // whoever awaits it sees the failure; until then it must not count as unhandled
      result.catch(() => undefined);
      running.push([item, result]);
      if (running.length < processes) continue;
      const [first, done] = running.shift() ?? [item, result];
      yield [first, await done];
    }
    for (let next = running.shift(); next !== undefined; next = running.shift()) yield [next[0], await next[1]];
  } finally {
    await Promise.allSettled(running.map(([, result]) => result));
  }
}

/** Appends chunks to a pack and keeps its books. */
class ChunkWriter {
  readonly #output: FileHandle;
  readonly #hash = createHash("sha256");
  readonly #chunks: Chunk[] = [];
  #bytes = 0;

  constructor(output: FileHandle) {
    this.#output = output;
  }

  async write(compressed: Buffer, rawBytes: number): Promise<void> {
    await this.#output.writeFile(compressed);
    this.#hash.update(compressed);
    const digest = createHash("sha256").update(compressed).digest("hex");
    this.#chunks.push({ offset: this.#bytes, bytes: compressed.length, rawBytes, digest });
    this.#bytes += compressed.length;
  }

  async done(): Promise<{ digest: string; bytes: number; chunks: Chunk[] }> {
    await this.#output.sync();
    return { digest: this.#hash.digest("hex"), bytes: this.#bytes, chunks: this.#chunks };
  }

  async close(): Promise<void> {
    await this.#output.close();
  }
}

/** Size and SHA-256 of a file. */
export async function digestFile(file: string): Promise<{ bytes: number; digest: string }> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const piece of createReadStream(file, { highWaterMark: 1024 * 1024 }) as AsyncIterable<Buffer>) {
    hash.update(piece);
    bytes += piece.length;
  }
  return { bytes, digest: hash.digest("hex") };
}
