import { z } from "zod";
import { run } from "../agent/process.ts";

const mapSchema = z.array(z.object({ start: z.int(), length: z.int(), data: z.boolean() }));

/** Where a raw image may hold something; everything else reads as zeros and need not be read at all. */
export class DataRanges {
  readonly #starts: number[];
  readonly #ends: number[];

  private constructor(ranges: { start: number; end: number }[]) {
    this.#starts = ranges.map(({ start }) => start);
    this.#ends = ranges.map(({ end }) => end);
  }

  /** Asks the file system, by qemu-img, as Node cannot; where that gives no answer in time the whole file may hold something. */
  static async of(file: string, signal?: AbortSignal): Promise<DataRanges> {
    try {
      const { stdout } = await run(["qemu-img", "map", "-U", "-f", "raw", "--output=json", file], { timeoutMillis: 10_000, signal });
      const ranges = mapSchema.parse(JSON.parse(stdout)).filter(({ data }) => data);
      return new DataRanges(ranges.map(({ start, length }) => ({ start, end: start + length })));
    } catch {
      signal?.throwIfAborted();
      return new DataRanges([{ start: 0, end: Infinity }]);
    }
  }

  /** For nothing at all. */
  static readonly none = new DataRanges([]);

  has(start: number, end: number): boolean {
    let low = 0;
    for (let high = this.#starts.length; low < high;) {
      const middle = (low + high) >> 1;
      if ((this.#ends[middle] ?? Infinity) <= start) low = middle + 1;
      else high = middle;
    }
    return (this.#starts[low] ?? Infinity) < end;
  }
}
