import type { Qmp } from "../qmp.ts";
import { NbdClient } from "./nbdClient.ts";
import { bitmapsOf, nextBitmaps, offerDisk, removeBitmap, withdrawDisk } from "./qmpLive.ts";
import { pageBytes } from "./ramStream.ts";

const prefix = "live-";
const readBytes = 1024 * 1024;
const dirtyFlag = 1;
/** What a disk has of its own. For a disk over an image: what is allocated in the guest's layer; else whatever is neither hole nor zeros. */
const firstContexts = {
  layered: { context: "qemu:allocation-depth", wanted: (flags: number) => (flags & 3) === 1 },
  whole: { context: "base:allocation", wanted: (flags: number) => flags === 0 },
};

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
      const { context, wanted } =
        bitmap === undefined
          ? firstContexts[disk === 0 ? "layered" : "whole"]
          : { context: `qemu:dirty-bitmap:${bitmap}`, wanted: (flags: number) => (flags & dirtyFlag) !== 0 };
      const client = await NbdClient.connect(this.#socket, name, context);
      try {
        for (const { offset, length, flags } of await client.extents()) {
          if (!wanted(flags)) continue;
          for (let at = offset; at < offset + length; at += readBytes) {
            signal.throwIfAborted();
            const data = await client.read(at, Math.min(readBytes, offset + length - at));
            for (const { from, to, zero } of runsOf(data))
              yield { disk, unit: (at + from) / pageBytes, data: zero ? (to - from) / pageBytes : data.subarray(from, to) };
          }
        }
      } finally {
        client.close();
        await withdrawDisk(this.#qmp, name);
      }
      if (bitmap !== undefined) await removeBitmap(this.#qmp, node, bitmap);
    }
  }
}

function bitmapOf(round: number): string {
  return `${prefix}${String(round)}`;
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
