import { type FileHandle, open } from "node:fs/promises";
import { type BlockTable, NumberList, isZeroBlock, zeros } from "./blockTable.ts";
import { type ImageIndex, zeroBlock } from "./blockIndex.ts";
import { DataRanges } from "./dataRanges.ts";
import { ImageHash } from "./imageDigest.ts";
import { blockBytes } from "./manifest.ts";
import type { Progress, SealImage } from "./sealTypes.ts";

const pieceBytes = 4 * 1024 * 1024;
// where a piece differs, a part of this size is looked at before its single blocks are
const partBytes = 64 * 1024;

/** What an image differs in, its stored blocks numbered by `table`; and the digest of the whole image. */
export interface Scanned {
  index: ImageIndex;
  digest: string;
}

/** Reads a whole image once, next to what lies below it. */
export async function scanImage(image: SealImage, target: { table: BlockTable; source: number }, progress: Progress): Promise<Scanned> {
  const hash = new ImageHash();
  const blocks = new NumberList();
  const stored = new NumberList();
  for await (const { offset, current, below } of piecesOf(image, progress)) {
    hash.update(current);
    if (below === undefined) continue;
    for (const at of differences(current, below)) {
      const block = (offset + at) / blockBytes;
      blocks.push(block);
      const isZero = isZeroBlock(current, at);
      stored.push(isZero ? zeroBlock : target.table.add(current.subarray(at, at + blockBytes), target.source, block));
    }
  }
  return { index: { blocks: blocks.done(), stored: stored.done() }, digest: hash.done() };
}

interface Piece {
  offset: number;
  current: Buffer;
  /** undefined = it is known not to differ. */
  below: Buffer | undefined;
}

/** The pieces of an image in order, each read while the one before it is being looked at. */
async function* piecesOf(image: SealImage, progress: Progress): AsyncGenerator<Piece> {
  const current = await Source.open(image.current, progress.signal);
  const below = image.below === undefined ? undefined : await Source.open(image.below, progress.signal);
  const load = async (offset: number): Promise<Piece> => {
    const length = Math.min(pieceBytes, image.virtualBytes - offset);
    const [now, before] = await Promise.all([
      current.read(offset, length),
      mayDiffer(image, offset, offset + length) ? (below?.read(offset, length) ?? zeros.subarray(0, length)) : undefined,
    ]);
    return { offset, current: now, below: before };
  };
  let next: Promise<Piece> | undefined;
  try {
    for (let offset = 0; offset < image.virtualBytes; offset += pieceBytes) {
      progress.signal.throwIfAborted();
      const piece = await (next ?? load(offset));
      next = offset + pieceBytes < image.virtualBytes ? load(offset + pieceBytes) : undefined;
      // where somebody stops half-way, nobody is left to see its failure
      next?.catch(() => undefined);
      yield piece;
    }
  } finally {
    await next?.catch(() => undefined);
    await Promise.all([current.close(), below?.close()]);
  }
}

function mayDiffer({ changed }: SealImage, start: number, end: number): boolean {
  return changed === undefined || changed.some(({ offset, length }) => offset < end && offset + length > start);
}

/** A raw image of which only what holds something is read; beyond its end there are zeros. */
class Source {
  readonly #handle: FileHandle;
  readonly #data: DataRanges;
  // one is being looked at while the next one is being read
  readonly #buffers = [Buffer.alloc(pieceBytes), Buffer.alloc(pieceBytes)];
  #turn = 0;

  private constructor(handle: FileHandle, data: DataRanges) {
    this.#handle = handle;
    this.#data = data;
  }

  static async open(file: string, signal: AbortSignal): Promise<Source> {
    const data = await DataRanges.of(file, signal);
    return new Source(await open(file, "r"), data);
  }

  async read(offset: number, length: number): Promise<Buffer> {
    if (!this.#data.has(offset, offset + length)) return zeros.subarray(0, length);
    const buffer = this.#buffers[this.#turn++ % 2] ?? Buffer.alloc(pieceBytes);
    let filled = 0;
    while (filled < length) {
      const { bytesRead } = await this.#handle.read(buffer, filled, length - filled, offset + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return buffer.fill(0, filled, length).subarray(0, length);
  }

  async close(): Promise<void> {
    await this.#handle.close();
  }
}

/** Where blocks differ, ascending. */
function* differences(current: Buffer, below: Buffer): Generator<number> {
  const differs = (start: number, end: number): boolean => current.compare(below, start, end, start, end) !== 0;
  const { length } = current;
  if (!differs(0, length)) return;
  for (let part = 0; part < length; part += partBytes) {
    const end = Math.min(part + partBytes, length);
    if (!differs(part, end)) continue;
    for (let at = part; at < end; at += blockBytes) if (differs(at, at + blockBytes)) yield at;
  }
}
