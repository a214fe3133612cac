import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, readdir, readFile, rename, rm, stat, statfs, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import type { LocalBlob } from "../core/context.ts";
import { CloudletError } from "../core/errors.ts";
import { cacheFolder } from "./cacheFolder.ts";

/** What a source gave when it was asked last. */
const noteSchema = z.object({ digest: z.string().regex(/^[0-9a-f]{64}$/), etag: z.string().optional(), modified: z.string().optional() });
export type Note = z.infer<typeof noteSchema>;

const keptMillis = 30 * 24 * 3_600_000;
const unfinishedMillis = 3 * 24 * 3_600_000;

/** Images that this machine downloaded, pulled or built, each under its digest. What nobody asked for in a month goes. */
export class Cache {
  readonly #root: string;

  constructor(root = cacheFolder()) {
    this.#root = root;
  }

  /** undefined = it is not there, or not what it was. */
  async find(digest: string): Promise<LocalBlob | undefined> {
    const path = join(this.#root, "images", digest);
    if ((await stat(path).catch(() => undefined)) === undefined) return undefined;
    const found = await blobOf(path);
    if (found.digest !== digest) return void (await rm(path, { force: true }));
    await touch(path);
    return found;
  }

  /** Takes a finished file over, in one step. */
  async keep(path: string): Promise<LocalBlob> {
    await sync(path);
    const found = await blobOf(path);
    const [images, notes] = [await this.#folder("images"), await this.#folder("notes")];
    const target = join(images, found.digest);
    await touch(path);
    await rename(path, target);
    for (const folder of [images, notes]) await removeOld(folder, keptMillis);
    return { ...found, stream: () => createReadStream(target) };
  }

  async note(key: string): Promise<Note | undefined> {
    const text = await readFile(join(this.#root, "notes", `${key}.json`), "utf8").catch(() => "null");
    return noteSchema.safeParse(parse(text)).data;
  }

  async write(key: string, note: Note): Promise<void> {
    const path = join(await this.#folder("notes"), `${key}.json`);
    const temporary = `${path}.${randomBytes(4).toString("hex")}`;
    await writeFile(temporary, JSON.stringify(note));
    await rename(temporary, path);
  }

  /** A path for a file that is being made; gone one day if it is left. */
  async temporary(name = randomBytes(8).toString("hex")): Promise<string> {
    const folder = await this.#folder("work");
    await removeOld(folder, unfinishedMillis);
    return join(folder, name);
  }

  /** A directory for the time of some work. */
  async withDirectory<T>(work: (directory: string) => Promise<T>): Promise<T> {
    const directory = await this.temporary();
    await mkdir(directory, { mode: 0o700 });
    try {
      return await work(directory);
    } finally {
      await rm(directory, { recursive: true, force: true });
    }
  }

  /** Refuses what would fill the disk. */
  async ensureSpace(bytes: number, what: string): Promise<void> {
    const { bavail, bsize } = await statfs(await this.#folder("work"));
    if (bytes <= bavail * bsize) return;
    const mib = (amount: number): string => String(Math.ceil(amount / 1024 / 1024));
    throw new CloudletError("REFUSED", `${what} has ${mib(bytes)} MiB, and ${this.#root} has room for ${mib(bavail * bsize)} MiB`, {
      fix: "make room there, or set XDG_CACHE_HOME to a larger disk",
    });
  }

  async #folder(name: string): Promise<string> {
    const folder = join(this.#root, name);
    await mkdir(folder, { recursive: true, mode: 0o700 });
    return folder;
  }
}

/** A short name for a source. */
export function keyOf(...words: string[]): string {
  return createHash("sha256").update(JSON.stringify(words)).digest("hex").slice(0, 32);
}

async function blobOf(path: string): Promise<LocalBlob> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of createReadStream(path) as AsyncIterable<Buffer>) {
    hash.update(chunk);
    bytes += chunk.length;
  }
  return { digest: hash.digest("hex"), bytes, stream: () => createReadStream(path) };
}

async function removeOld(folder: string, millis: number): Promise<void> {
  for (const name of await readdir(folder).catch(() => [])) {
    const path = join(folder, name);
    const found = await stat(path).catch(() => undefined);
    if (found !== undefined && found.mtimeMs < Date.now() - millis) await rm(path, { recursive: true, force: true });
  }
}

async function touch(path: string): Promise<void> {
  const now = new Date();
  await utimes(path, now, now);
}

async function sync(path: string): Promise<void> {
  const file = await open(path, "r");
  try {
    await file.sync();
  } finally {
    await file.close();
  }
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
