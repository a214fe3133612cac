import { readSync } from "node:fs";
import { open, type FileHandle } from "node:fs/promises";
import { setImmediate } from "node:timers/promises";
import { hashBytes, hashOf, zeroHash } from "./pageTable.ts";
import { pageBytes } from "./ramStream.ts";
import type { Place } from "./records.ts";
import { hashesIn } from "./unitFile.ts";
import { CloudletError } from "../../../core/errors.ts";
import { run } from "../../../agent/process.ts";
import { z } from "zod";

const readBytes = 1024 * 1024;
/** Of all images together: a table of this many takes about 60 MB. */
const mostUnits = 512 * 1024;

/**
 * Images that both nodes have, each as one raw file: what a running guest has in common with them need not be sent. Behind
 * them comes what only the target has, from when the guest was there before.
 */
export class Images {
  readonly #files: FileHandle[];
  readonly #places = new Map<string, number>();
  /** The number of the one that only the target has. */
  readonly former: number;
  readonly #units: number[];

  private constructor(files: FileHandle[], { units, former }: { units: number[]; former: number }) {
    this.#files = files;
    this.former = former;
    this.#units = units;
  }

  /** `former`: on the target, the file of what it has besides. */
  static async open(paths: readonly string[], former?: string): Promise<Images> {
    const files: FileHandle[] = [];
    for (const path of former === undefined ? paths : [...paths, former]) files.push(await open(path, "r"));
    const units = await Promise.all(files.map(async (file) => Math.floor((await file.stat()).size / pageBytes)));
    return new Images(files, { units, former: paths.length });
  }

  /** Such that contents are found, also what the target has besides. */
  static async indexed(paths: readonly string[], onTarget: Promise<Buffer>, signal: AbortSignal): Promise<Images> {
    const images = await Images.open(paths);
    try {
      await images.#index(paths, signal);
      images.addFormer(await onTarget);
      return images;
    } catch (error) {
      await images.close();
      throw error;
    }
  }

  /** Reads everything once. */
  async #index(paths: readonly string[], signal: AbortSignal): Promise<void> {
    let units = 0;
    // memory, which comes last, first: its pages are where the guest has them, one after the other, and those of files in its cache are not
    for (const [image, path] of [...paths.entries()].reverse()) {
      for (const { start, end } of await dataRanges(path, signal)) {
        for (let at = start; at < end && units < mostUnits; at += readBytes) {
          signal.throwIfAborted();
          // others have their turn meanwhile: this may be gigabytes
          await setImmediate();
          const data = this.#readBytes(image, at, Math.min(readBytes, end - at));
          for (let offset = 0; offset + pageBytes <= data.length; offset += pageBytes) {
            const hash = hashOf(data.subarray(offset, offset + pageBytes));
            if (hash.equals(zeroHash)) continue;
            const key = hash.toString("latin1");
            if (!this.#places.has(key)) this.#places.set(key, image * 2 ** 32 + (at + offset) / pageBytes);
            units++;
          }
        }
      }
    }
  }

  /** What this target has besides, unit by unit: of the very file that is open, whatever becomes of its name. */
  async formerHashes(signal: AbortSignal): Promise<Buffer> {
    const file = this.#files[this.former];
    return file === undefined ? Buffer.alloc(0) : hashesIn(file, signal);
  }

  /** What the target has besides, unit by unit. */
  addFormer(hashes: Buffer): void {
    for (let unit = 0; unit < hashes.length / hashBytes; unit++) {
      const key = hashes.toString("latin1", unit * hashBytes, (unit + 1) * hashBytes);
      if (!this.#places.has(key)) this.#places.set(key, this.former * 2 ** 32 + unit);
    }
  }

  find(hash: Buffer): Place | undefined {
    const place = this.#places.get(hash.toString("latin1"));
    return place === undefined ? undefined : { image: Math.floor(place / 2 ** 32), unit: place % 2 ** 32 };
  }

  /** Units from a place on; beyond an image's end there are zeros. */
  read({ image, unit }: Place, count: number): Buffer {
    const there = Math.max(0, Math.min(count, (this.#units[image] ?? 0) - unit));
    if (image >= this.former && there < count)
      throw new CloudletError("INTEGRITY", "what arrives of the running guest names something that this node does not have");
    const data = this.#readBytes(image, unit * pageBytes, there * pageBytes);
    return there === count ? data : Buffer.concat([data], count * pageBytes);
  }

  async close(): Promise<void> {
    for (const file of this.#files) await file.close();
  }

  /** At once: tens of thousands of small pieces, most of which the kernel has at hand, would each wait for another thread. */
  #readBytes(image: number, offset: number, length: number): Buffer {
    const data = Buffer.allocUnsafe(length);
    const file = this.#files[image];
    let filled = 0;
    while (file !== undefined && filled < length) {
      const bytesRead = readSync(file.fd, data, filled, length - filled, offset + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return data.subarray(0, filled);
  }
}

const mapSchema = z.array(z.object({ start: z.int(), length: z.int(), data: z.boolean() }));

/** Where an image may hold something; Node cannot ask the file system itself. */
async function dataRanges(path: string, signal: AbortSignal): Promise<{ start: number; end: number }[]> {
  const { stdout } = await run(["qemu-img", "map", "-U", "-f", "raw", "--output=json", path], { timeoutMillis: 60_000, signal });
  return mapSchema
    .parse(JSON.parse(stdout))
    .filter(({ data }) => data)
    .map(({ start, length }) => ({ start, end: start + length }));
}
