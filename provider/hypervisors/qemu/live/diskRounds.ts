import type { Qmp } from "../qmp.ts";
import { NbdClient, type Extent } from "./nbdClient.ts";
import { bitmapsOf, nextBitmaps, offerDisk, removeBitmap, withdrawDisk } from "./qmpLive.ts";
import { pageBytes } from "./ramStream.ts";

const prefix = "live-";
const readBytes = 1024 * 1024;
const dirtyFlag = 1;
const zeroFlag = 2;
const allocation = "base:allocation";
/** What a disk has of its own. For a disk over an image: what is allocated in the guest's layer; else whatever is not zeros. */
const firstContexts: Record<"layered" | "whole", Asked> = {
  layered: { context: "qemu:allocation-depth", wanted: (flags) => (flags & 3) === 1 },
  whole: { context: allocation, wanted: (flags) => (flags & zeroFlag) === 0 },
};

export type Piece = Pick<Extent, "offset" | "length">;

/** Units of a disk that have changed: their bytes, or how many of them are zeros. */
export interface Changed {
  disk: number;
  unit: number;
  data: Buffer | number;
}

export function isLiveBitmap(name: string): boolean {
  return name.startsWith(prefix);
}

/** What has changed on a guest's disks since the last time, by dirty bitmaps; at first, what they have of their own. */
export class DiskRounds {
  readonly #qmp: Qmp;
  readonly #socket: string;
  readonly #nodes: readonly string[];
  #round = 0;

  private constructor(qmp: Qmp, socket: string, nodes: readonly string[]) {
    this.#qmp = qmp;
    this.#socket = socket;
    this.#nodes = nodes;
  }

  static async begin(qmp: Qmp, socket: string, nodes: readonly string[]): Promise<DiskRounds> {
    await nextBitmaps(qmp, nodes, { next: bitmapOf(0) });
    return new DiskRounds(qmp, socket, nodes);
  }

  async *round(signal: AbortSignal): AsyncGenerator<Changed> {
    const round = this.#round++;
    if (round === 0) return yield* this.#read(undefined, signal);
    await nextBitmaps(this.#qmp, this.#nodes, { last: bitmapOf(round - 1), next: bitmapOf(round) });
    yield* this.#read(bitmapOf(round - 1), signal);
  }

  /** Bytes that have changed since the last round began. */
  async changed(): Promise<number> {
    const name = bitmapOf(Math.max(0, this.#round - 1));
    return (await bitmapsOf(this.#qmp, this.#nodes)).reduce((sum, bitmap) => sum + (bitmap.name === name ? bitmap.bytes : 0), 0);
  }

  /** While the guest stands still. */
  async *last(signal: AbortSignal): AsyncGenerator<Changed> {
    const bitmap = bitmapOf(Math.max(0, this.#round - 1));
    if (this.#round === 0) yield* this.#read(undefined, signal);
    await nextBitmaps(this.#qmp, this.#nodes, { last: bitmap });
    yield* this.#read(bitmap, signal);
  }

  async *#read(bitmap: string | undefined, signal: AbortSignal): AsyncGenerator<Changed> {
    for (const [disk, node] of this.#nodes.entries()) {
      const name = `${node}-${bitmap ?? "first"}`;
      await offerDisk(this.#qmp, { node, name, ...(bitmap !== undefined && { bitmap }) });
      const asked = bitmap === undefined ? firstContexts[disk === 0 ? "layered" : "whole"] : changedIn(bitmap);
      const client = await NbdClient.connect(this.#socket, name, [...new Set([asked.context, allocation])]);
      try {
        for await (const { unit, data } of readWanted(client, asked, signal)) yield { disk, unit, data };
      } finally {
        client.close();
        await withdrawDisk(this.#qmp, name);
      }
      if (bitmap !== undefined) await removeBitmap(this.#qmp, node, bitmap);
    }
  }
}

/** What an export's metadata context says of its parts. */
interface Asked {
  context: string;
  wanted(flags: number): boolean;
}

function changedIn(bitmap: string): Asked {
  return { context: `qemu:dirty-bitmap:${bitmap}`, wanted: (flags) => (flags & dirtyFlag) !== 0 };
}

async function* readWanted(client: NbdClient, { context, wanted }: Asked, signal: AbortSignal): AsyncGenerator<Omit<Changed, "disk">> {
  const mine = (await client.extents(context)).filter(({ flags }) => wanted(flags));
  const known = (await client.extents(allocation)).filter(({ flags }) => (flags & zeroFlag) !== 0);
  const { there, empty } = splitBy(mine, known);
  // gigabytes perhaps, which the guest has given back
  for (const { offset, length } of empty) yield { unit: offset / pageBytes, data: length / pageBytes };
  for (const pieces of together(there)) {
    signal.throwIfAborted();
    const read = await Promise.all(pieces.map(async (piece) => ({ ...piece, data: await client.read(piece.offset, piece.length) })));
    for (const { offset, data } of read)
      for (const { from, to, zero } of runsOf(data))
        yield { unit: (offset + from) / pageBytes, data: zero ? (to - from) / pageBytes : data.subarray(from, to) };
  }
}

function bitmapOf(round: number): string {
  return `${prefix}${String(round)}`;
}

/** What of `mine` lies in what is known to be zeros, in whole units, and what does not; both are in order. */
export function splitBy(mine: readonly Piece[], known: readonly Piece[]): { there: Piece[]; empty: Piece[] } {
  const [there, empty]: [Piece[], Piece[]] = [[], []];
  const add = (to: Piece[], from: number, end: number): void => void (from < end && to.push({ offset: from, length: end - from }));
  let next = 0;
  for (const { offset, length } of mine) {
    let at = offset;
    const end = offset + length;
    for (let look = next; look < known.length; look++) {
      const { offset: start, length: zeroBytes } = known[look] ?? { offset: end, length: 0 };
      if (start >= end) break;
      if (start + zeroBytes <= offset) next = look + 1;
      const from = Math.ceil(Math.max(at, start) / pageBytes) * pageBytes;
      const to = Math.floor(Math.min(end, start + zeroBytes) / pageBytes) * pageBytes;
      if (from >= to) continue;
      add(there, at, from);
      add(empty, from, to);
      at = to;
    }
    add(there, at, end);
  }
  return { there, empty };
}

/** As much as is read at once, in pieces. */
function* together(extents: Iterable<Piece>): Generator<Piece[]> {
  let pieces: Piece[] = [];
  let bytes = 0;
  for (const extent of extents) {
    for (let at = 0; at < extent.length;) {
      const length = Math.min(readBytes - bytes, extent.length - at);
      pieces.push({ offset: extent.offset + at, length });
      at += length;
      bytes += length;
      if (bytes < readBytes) continue;
      yield pieces;
      [pieces, bytes] = [[], 0];
    }
  }
  if (pieces.length > 0) yield pieces;
}

const zeros = Buffer.alloc(pageBytes);

/** Stretches of zeros and of anything else. */
function* runsOf(data: Buffer): Generator<{ from: number; to: number; zero: boolean }> {
  const isZero = (at: number): boolean =>
    data.compare(zeros, 0, Math.min(pageBytes, data.length - at), at, Math.min(at + pageBytes, data.length)) === 0;
  for (let from = 0; from < data.length;) {
    const zero = isZero(from);
    let to = from + pageBytes;
    while (to < data.length && isZero(to) === zero) to += pageBytes;
    yield { from, to: Math.min(to, data.length), zero };
    from = to;
  }
}
