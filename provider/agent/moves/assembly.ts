import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, readdir, rename, rm, stat, type FileHandle } from "node:fs/promises";
import { basename, join } from "node:path";
import type { Readable } from "node:stream";
import { CloudletError } from "../../core/errors.ts";
import { syncDirectory } from "../durable.ts";
import { cut, sha256, zeroDigest, type Format, type Recipe } from "./recipe.ts";

const longestPiece = 1024 * 1024;
const frameHeader = 36;

/** A piece on the wire: 4 bytes of length, 32 bytes of digest, then its bytes. */
export function frame(digest: string, bytes: Buffer): Buffer {
  const header = Buffer.alloc(frameHeader);
  header.writeUInt32BE(bytes.length, 0);
  header.write(digest, 4, "hex");
  return Buffer.concat([header, bytes]);
}

/** The pieces of a file that are in `wanted`, each once, as frames. */
export async function* framesOf(path: string, format: Format, wanted: Set<string>): AsyncGenerator<Buffer> {
  for await (const piece of cut(path, format)) {
    const digest = sha256(piece);
    if (wanted.delete(digest)) yield frame(digest, piece);
  }
}

/** A local file in which pieces may already be. */
export interface Source {
  path: string;
  format: Format;
}

/**
 * Puts files together from pieces: what an earlier, interrupted transfer left, what local files hold, and what arrives.
 * Asking again after a crash finds what is on disk, so nothing is sent twice.
 */
export class Assembly {
  readonly #directory: string;
  #missing = new Map<string, { name: string; offset: number }[]>();
  #ended = false;

  constructor(directory: string) {
    this.#directory = directory;
  }

  partPath(name: string): string {
    return join(this.#directory, name);
  }

  /** Digests of the pieces that must be sent. */
  async begin(recipes: Recipe[], sources: Source[]): Promise<string[]> {
    await mkdir(this.#directory, { recursive: true });
    // what an attempt with other files left would be taken for part of this one
    const wanted = new Set(recipes.flatMap(({ name }) => [name, `${name}.partial`]).concat(sources.map(({ path }) => basename(path))));
    for (const name of await readdir(this.#directory)) {
      if (!wanted.has(name)) await rm(join(this.#directory, name), { recursive: true, force: true });
    }
    this.#missing = new Map();
    const former: Source[] = [];
    for (const recipe of recipes) former.push(...(await this.#putAside(recipe)));
    for (const recipe of recipes) await this.#findMissing(recipe);
    for (const source of [...former, ...sources]) {
      if (this.#missing.size === 0) break;
      for await (const piece of cut(source.path, source.format)) await this.#place(sha256(piece), piece);
    }
    for (const { path } of former) await rm(path, { force: true });
    return [...this.#missing.keys()];
  }

  /** What still arrives for it, late, is no longer written. */
  end(): void {
    this.#ended = true;
  }

  /** Reads frames until the stream ends. */
  async receive(stream: Readable): Promise<void> {
    let pending = Buffer.alloc(0);
    for await (const chunk of stream) {
      pending = pending.length === 0 ? Buffer.from(chunk) : Buffer.concat([pending, chunk]);
      while (pending.length >= frameHeader) {
        const length = pending.readUInt32BE(0);
        if (length > longestPiece)
          throw new CloudletError("INTEGRITY", `a piece of ${length} bytes was announced; none is longer than ${longestPiece}`);
        if (pending.length < frameHeader + length) break;
        const digest = pending.toString("hex", 4, frameHeader);
        const bytes = pending.subarray(frameHeader, frameHeader + length);
        if (sha256(bytes) !== digest) throw new CloudletError("INTEGRITY", `piece ${digest.slice(0, 12)} arrived damaged`);
        await this.#place(digest, bytes);
        pending = pending.subarray(frameHeader + length);
      }
    }
    if (pending.length > 0) throw new CloudletError("UNREACHABLE", "the transfer ended in the middle of a piece");
  }

  /** Verifies each whole file and gives it its final name. */
  async seal(recipes: Recipe[]): Promise<void> {
    for (const recipe of recipes) {
      if (await this.#complete(recipe)) continue;
      const partial = `${this.partPath(recipe.name)}.partial`;
      const digest = await fileDigest(partial);
      if (digest !== recipe.digest)
        throw new CloudletError(
          "INTEGRITY",
          `${recipe.name} was put together with digest ${digest.slice(0, 12)}, not ${recipe.digest.slice(0, 12)}`,
        );
      const file = await open(partial, "r+");
      await file.sync().finally(() => file.close());
      await rename(partial, this.partPath(recipe.name));
    }
    await syncDirectory(this.#directory);
  }

  async #complete(recipe: Recipe): Promise<boolean> {
    const there = await stat(this.partPath(recipe.name)).catch(() => undefined);
    return there?.size === recipe.bytes && (await fileDigest(this.partPath(recipe.name))) === recipe.digest;
  }

  /** What has come of a file when it was another one: most of its pieces are in this one, too, if elsewhere. */
  async #putAside({ name, bytes }: Recipe): Promise<Source[]> {
    const partial = `${this.partPath(name)}.partial`;
    const there = await stat(partial).catch(() => undefined);
    if (there === undefined || there.size === bytes) return [];
    const path = `${partial}.former`;
    await rename(partial, path);
    return [{ path, format: name.endsWith(".tar") ? "tar" : "raw" }];
  }

  async #findMissing(recipe: Recipe): Promise<void> {
    if (await this.#complete(recipe)) return;
    const partial = `${this.partPath(recipe.name)}.partial`;
    const resumed = (await stat(partial).catch(() => undefined))?.size === recipe.bytes;
    const file = await open(partial, resumed ? "r+" : "w+");
    try {
      await file.truncate(recipe.bytes);
      let offset = 0;
      for (const [digest, length] of recipe.pieces) {
        const there = resumed ? await readAt(file, offset, length) : undefined;
        const has = there ? sha256(there) === digest : digest === zeroDigest(length);
        if (!has) this.#missing.set(digest, [...(this.#missing.get(digest) ?? []), { name: recipe.name, offset }]);
        offset += length;
      }
    } finally {
      await file.close();
    }
  }

  async #place(digest: string, bytes: Buffer): Promise<void> {
    if (this.#ended) throw new CloudletError("CONFLICT", "the files are being put together by a later attempt");
    const places = this.#missing.get(digest);
    if (places === undefined) return;
    for (const { name, offset } of places) {
      const file = await open(`${this.partPath(name)}.partial`, "r+");
      await file.write(bytes, 0, bytes.length, offset).finally(() => file.close());
    }
    this.#missing.delete(digest);
  }
}

async function fileDigest(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk);
  return hash.digest("hex");
}

async function readAt(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const buffer = Buffer.alloc(length);
  await file.read(buffer, 0, length, offset);
  return buffer;
}
