import { open, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { hashBytes, hashOf } from "./pageTable.ts";
import { pageBytes } from "./ramStream.ts";

const readBytes = 1024 * 1024;
const flushBytes = 1024 * 1024;
/** Of one cloudlet: 1 GiB, whose hashes take 4 MiB. */
const mostUnits = 256 * 1024;

/** What each unit in such a file holds, by hash, one after the other. */
export async function hashesIn(file: FileHandle, signal: AbortSignal): Promise<Buffer> {
  const units = Math.min(mostUnits, Math.floor((await file.stat()).size / pageBytes));
  const hashes = Buffer.alloc(units * hashBytes);
  const data = Buffer.alloc(readBytes);
  for (let unit = 0; unit < units;) {
    signal.throwIfAborted();
    const { bytesRead } = await file.read(data, 0, readBytes, unit * pageBytes);
    if (bytesRead < pageBytes) return hashes.subarray(0, unit * hashBytes);
    for (let at = 0; at + pageBytes <= bytesRead && unit < units; at += pageBytes, unit++)
      hashOf(data.subarray(at, at + pageBytes)).copy(hashes, unit * hashBytes);
  }
  return hashes;
}

/**
 * Contents of a guest's pages and blocks in a file, in no order that means anything: a node keeps them for the time when
 * the guest comes back. It is worth something and not needed, so what goes wrong with it hinders nobody.
 */
export class UnitFile {
  readonly #path: string;
  readonly #known = new Set<string>();
  #file: FileHandle | undefined;
  #units: number;
  #waiting: Buffer = Buffer.alloc(0);
  #waitingBytes = 0;

  private constructor(path: string, file: FileHandle | undefined, units: number) {
    this.#path = path;
    this.#file = file;
    this.#units = units;
  }

  /** One that takes the place of an older one once it is `keep`t. */
  static async fresh(path: string): Promise<UnitFile> {
    return new UnitFile(path, await open(freshOf(path), "w", 0o600).catch(() => undefined), 0);
  }

  /** Goes on behind what is there. */
  static async more(path: string): Promise<UnitFile> {
    const units = Math.floor((await stat(path).catch(() => ({ size: 0 }))).size / pageBytes);
    const file = await open(path, "a", 0o600).catch(() => undefined);
    // what was cut off in the middle of a unit
    await file?.truncate(units * pageBytes);
    return new UnitFile(path, file, units);
  }

  /** What has a hash is taken once. */
  add(data: Buffer, hash?: Buffer): void {
    if (this.#file === undefined || this.#units >= mostUnits) return;
    if (hash !== undefined) {
      const key = hash.toString("latin1");
      if (this.#known.has(key)) return;
      this.#known.add(key);
    }
    if (this.#waitingBytes + data.length > this.#waiting.length) {
      const larger = Buffer.allocUnsafe(2 * (this.#waitingBytes + data.length));
      this.#waiting.copy(larger, 0, 0, this.#waitingBytes);
      this.#waiting = larger;
    }
    data.copy(this.#waiting, this.#waitingBytes);
    this.#waitingBytes += data.length;
    this.#units += data.length / pageBytes;
  }

  async flush(everything = false): Promise<void> {
    if (this.#file === undefined || this.#waitingBytes === 0 || (this.#waitingBytes < flushBytes && !everything)) return;
    const written = this.#waiting;
    const bytes = written.subarray(0, this.#waitingBytes);
    // what comes meanwhile must not get in between
    [this.#waiting, this.#waitingBytes] = [Buffer.alloc(0), 0];
    try {
      await this.#file.writeFile(bytes);
      if (this.#waitingBytes === 0) this.#waiting = written;
    } catch {
      await this.#close();
    }
  }

  /** From now on this is what the node has of the guest. */
  async keep(): Promise<void> {
    await this.flush(true);
    if (this.#file === undefined) return;
    await this.#close();
    await rename(freshOf(this.#path), this.#path).catch(() => undefined);
  }

  /** Of one that is not `keep`t nothing stays. */
  async close(): Promise<void> {
    await this.flush(true);
    await this.#close();
    await rm(freshOf(this.#path), { force: true }).catch(() => undefined);
  }

  async #close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.close().catch(() => undefined);
  }
}

function freshOf(path: string): string {
  return `${path}.new`;
}
