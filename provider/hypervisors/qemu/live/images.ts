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
/** Of the disk: a table of this many takes about 60 MB. */
const mostUnits = 512 * 1024;
/** Of saved memory, read at once and compared page by page. */
const windowBytes = 256 * 1024;

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
  /** Which windows of saved memory hold something. */
  #held: Uint8Array = new Uint8Array(0);
  /** The part of saved memory that was compared with last. */
  #window: { at: number; bytes: Buffer } = { at: -1, bytes: Buffer.alloc(0) };
  /** What is read and looked at in passing: a new buffer each time would be gigabytes to collect. */
  #passing = Buffer.allocUnsafe(readBytes);

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
      const [disk, saved] = paths;
      if (saved !== undefined) images.#held = await heldWindows(saved, signal);
      if (disk !== undefined) await images.#index(disk, signal);
      images.addFormer(await onTarget);
      return images;
    } catch (error) {
      await images.close();
      throw error;
    }
  }

  /** Reads all of the disk once. */
  async #index(disk: string, signal: AbortSignal): Promise<void> {
    let units = 0;
    for (const { start, end } of await dataRanges(disk, signal)) {
      for (let at = start; at < end && units < mostUnits; at += readBytes) {
        signal.throwIfAborted();
        // others have their turn meanwhile: this may be gigabytes
        await setImmediate();
        const data = this.#readInto(this.#passing, diskImage, { offset: at, length: Math.min(readBytes, end - at) });
        for (let offset = 0; offset + pageBytes <= data.length; offset += pageBytes) {
          const hash = hashOf(data.subarray(offset, offset + pageBytes));
          if (hash.equals(zeroHash)) continue;
          const key = hash.toString("latin1");
          if (!this.#places.has(key)) this.#places.set(key, diskImage * 2 ** 32 + (at + offset) / pageBytes);
          units++;
        }
      }
    }
  }

  /**
   * Where saved memory has the very page that the guest has there: of a guest that went on from it, most of what is not its own.
   * To compare takes a fraction of what a hash takes.
   */
  asSaved(unit: number, page: Buffer): Place | undefined {
    const at = Math.floor((unit * pageBytes) / windowBytes);
    if (this.#held[at] !== 1) return undefined;
    if (this.#window.at !== at)
      this.#window = { at, bytes: this.#readInto(this.#passing, savedImage, { offset: at * windowBytes, length: windowBytes }) };
    const { bytes } = this.#window;
    const offset = unit * pageBytes - at * windowBytes;
    if (offset + pageBytes > bytes.length || page.compare(bytes, offset, offset + pageBytes) !== 0) return undefined;
    return { image: savedImage, unit };
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

  /** Units from a place on, put into a buffer; beyond an image's end there are zeros. */
  read({ image, unit }: Place, count: number, buffer: Buffer = Buffer.allocUnsafe(count * pageBytes)): Buffer {
    const there = Math.max(0, Math.min(count, (this.#units[image] ?? 0) - unit));
    if (image >= this.former && there < count)
      throw new CloudletError("INTEGRITY", "what arrives of the running guest names something that this node does not have");
    const data = this.#readInto(buffer, image, { offset: unit * pageBytes, length: there * pageBytes });
    return there === count ? data : buffer.fill(0, data.length).subarray(0, count * pageBytes);
  }

  async close(): Promise<void> {
    for (const file of this.#files) await file.close();
  }

  /** At once: tens of thousands of small pieces, most of which the kernel has at hand, would each wait for another thread. */
  #readInto(buffer: Buffer, image: number, { offset, length }: { offset: number; length: number }): Buffer {
    const file = this.#files[image];
    let filled = 0;
    while (file !== undefined && filled < length) {
      const bytesRead = readSync(file.fd, buffer, filled, length - filled, offset + filled);
      if (bytesRead === 0) break;
      filled += bytesRead;
    }
    return buffer.subarray(0, filled);
  }
}

/** In the order in which records number them. */
const [diskImage, savedImage] = [0, 1] as const;

async function heldWindows(path: string, signal: AbortSignal): Promise<Uint8Array> {
  const ranges = await dataRanges(path, signal);
  const held = new Uint8Array(Math.ceil(Math.max(0, ...ranges.map(({ end }) => end)) / windowBytes));
  for (const { start, end } of ranges) held.fill(1, Math.floor(start / windowBytes), Math.ceil(end / windowBytes));
  return held;
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
