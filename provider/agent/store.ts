import { createHash, randomBytes } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, readdir, rename, rm, stat, statfs, utimes } from "node:fs/promises";
import path from "node:path";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import { CloudletError } from "../core/errors.ts";
import { isMissing, readJson, syncDirectory, syncFile, writeDurably } from "./durable.ts";
import { digestSchema } from "./protocol.ts";

const markSchema = z.object({ inode: z.number(), mtimeMillis: z.number(), bytes: z.number() });
type Mark = z.infer<typeof markSchema>;

// what must stay free for the node itself
const reserveBytes = 256 * 1024 * 1024;

/** Bases, builds and other immutable data, kept under the digest of their bytes. */
export class Store {
  readonly #directory: string;
  readonly #makeRoom: () => Promise<void>;
  readonly #arriving = new Map<string, Promise<void>>();
  readonly #awaited = new Set<string>();

  /** `makeRoom` gives up what the node can do without, and is asked before anything is refused for lack of space. */
  constructor(directory: string, makeRoom: () => Promise<void> = () => Promise.resolve()) {
    this.#directory = directory;
    this.#makeRoom = makeRoom;
  }

  async has(digest: string): Promise<boolean> {
    return (await this.#mark(digest)) !== undefined;
  }

  async bytes(digest: string): Promise<number> {
    return (await this.#mark(digest))?.bytes ?? 0;
  }

  /** Takes bytes in; they become visible only when their digest is right. Several callers with the same digest share one transfer. */
  async put(digest: string, open: () => Promise<Readable> | Readable, expectedBytes = 0): Promise<void> {
    digestSchema.parse(digest);
    // one that fails leaves the rest to try with their own source
    for (let other = this.#arriving.get(digest); other !== undefined; other = this.#arriving.get(digest)) {
      this.#awaited.add(digest);
      await other.catch(() => undefined);
    }
    const arrival = this.#receive(digest, open, expectedBytes).finally(() => {
      this.#arriving.delete(digest);
      this.#awaited.delete(digest);
    });
    this.#arriving.set(digest, arrival);
    return arrival;
  }

  /** Whether somebody waits for this digest while another brings it. */
  isAwaited(digest: string): boolean {
    return this.#awaited.has(digest);
  }

  /** Returns when nobody brings this digest just now, without being somebody who waits. */
  async settled(digest: string): Promise<void> {
    for (let other = this.#arriving.get(digest); other !== undefined; other = this.#arriving.get(digest))
      await other.catch(() => undefined);
  }

  /** Takes over a file that was put together beside the store. */
  async adopt(digest: string, path: string): Promise<void> {
    await this.put(digest, () => createReadStream(path));
    await rm(path, { force: true });
  }

  /** Path of the data, verified: the whole content once, and again whenever the file has changed. */
  async path(digest: string): Promise<string> {
    const file = this.#file(digest);
    const now = await this.#mark(digest);
    if (now === undefined)
      throw new CloudletError("NOT_FOUND", `the store has no data with digest ${digest}`, { fix: "send the data to the node first" });
    const verified = await readJson(`${file}.verified`, markSchema).catch(() => undefined);
    if (verified?.inode !== now.inode || verified.mtimeMillis !== now.mtimeMillis || verified.bytes !== now.bytes) {
      const found = await digestOf(createReadStream(file));
      if (found !== digest) {
        await this.#remove(digest);
        throw new CloudletError("INTEGRITY", `the store's file for ${digest} was changed: its digest is now ${found}; it has been removed`);
      }
      await writeDurably(`${file}.verified`, JSON.stringify(now), 0o600);
    }
    // the mark's own time says when the data was used last
    await utimes(`${file}.verified`, new Date(), new Date());
    return file;
  }

  /** Removes everything that is not referenced and has not been used for `unusedMillis`. Returns the digests removed. */
  async collect(references: ReadonlySet<string>, unusedMillis = 0): Promise<string[]> {
    const removed: string[] = [];
    for (const digest of await this.list()) {
      if (references.has(digest) || this.#arriving.has(digest)) continue;
      if (unusedMillis > 0 && Date.now() - (await this.#lastUse(digest)) < unusedMillis) continue;
      await this.#remove(digest);
      removed.push(digest);
    }
    return removed;
  }

  /** Removes those of these that are not referenced, at once. */
  async discard(digests: Iterable<string>, references: ReadonlySet<string>): Promise<void> {
    for (const digest of digests) if (!references.has(digest) && !this.#arriving.has(digest)) await this.#remove(digest);
  }

  async list(): Promise<string[]> {
    const found: string[] = [];
    for (const prefix of await readdir(this.#directory).catch(() => [])) {
      for (const name of await readdir(path.join(this.#directory, prefix)).catch(() => [])) {
        if (digestSchema.safeParse(name).success) found.push(name);
      }
    }
    return found.sort();
  }

  /** Removes what transfers left behind when the agent was killed. Call before the first `put`. */
  async clean(): Promise<void> {
    for (const prefix of await readdir(this.#directory).catch(() => [])) {
      const directory = path.join(this.#directory, prefix);
      for (const name of await readdir(directory).catch(() => [])) {
        if (name.endsWith(".tmp")) await rm(path.join(directory, name), { force: true });
      }
    }
  }

  async requireSpace(bytes: number): Promise<void> {
    await mkdir(this.#directory, { recursive: true, mode: 0o755 });
    let free = await this.#free();
    if (free < bytes + reserveBytes) {
      await this.#makeRoom();
      free = await this.#free();
    }
    if (free < bytes + reserveBytes) {
      throw new CloudletError(
        "REFUSED",
        `${String(toMib(bytes))} MiB do not fit: ${String(toMib(free))} MiB are free at ${this.#directory}, of which ${String(toMib(reserveBytes))} MiB stay reserved`,
        { fix: "free disk space on the node" },
      );
    }
  }

  async #free(): Promise<number> {
    const { bavail, bsize } = await statfs(this.#directory);
    return bavail * bsize;
  }

  async #receive(digest: string, open: () => Promise<Readable> | Readable, expectedBytes: number): Promise<void> {
    if (await this.has(digest)) return;
    await this.requireSpace(expectedBytes);
    const file = this.#file(digest);
    const temporary = `${file}.${randomBytes(6).toString("hex")}.tmp`;
    await mkdir(path.dirname(file), { recursive: true, mode: 0o755 });
    const hash = createHash("sha256");
    try {
      const source = await open();
      const hashing = async function* (chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
        for await (const chunk of chunks) {
          hash.update(chunk);
          yield chunk;
        }
      };
      await pipeline(source, hashing, createWriteStream(temporary, { mode: 0o444, flags: "wx" }));
      const found = hash.digest("hex");
      if (found !== digest) throw new CloudletError("INTEGRITY", `the data received for ${digest} has digest ${found}`);
      await syncFile(temporary);
      await rename(temporary, file);
    } finally {
      await rm(temporary, { force: true });
    }
    await syncDirectory(path.dirname(file));
    const mark = await this.#mark(digest);
    await writeDurably(`${file}.verified`, JSON.stringify(mark), 0o600);
  }

  async #mark(digest: string): Promise<Mark | undefined> {
    try {
      const { ino, mtimeMs, size } = await stat(this.#file(digest));
      return { inode: ino, mtimeMillis: mtimeMs, bytes: size };
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  async #lastUse(digest: string): Promise<number> {
    const file = this.#file(digest);
    const { mtimeMs } = await stat(`${file}.verified`).catch(() => stat(file));
    return mtimeMs;
  }

  async #remove(digest: string): Promise<void> {
    await rm(this.#file(digest), { force: true });
    await rm(`${this.#file(digest)}.verified`, { force: true });
  }

  #file(digest: string): string {
    return path.join(this.#directory, digest.slice(0, 2), digest);
  }
}

export async function digestOf(stream: Readable): Promise<string> {
  const hash = createHash("sha256");
  await pipeline(stream, hash);
  return hash.digest("hex");
}

function toMib(bytes: number): number {
  return Math.ceil(bytes / 1024 / 1024);
}
