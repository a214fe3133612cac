import { createReadStream } from "node:fs";
import { lstat, readdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import type { EntryType, TarEntry } from "../archive/tar.ts";
import { endOfTar, headerOf, paddingOf } from "../archive/write.ts";

/**
 * A directory as the tar of a root file system: the same content gives the same bytes. Modes, links and devices are kept, times
 * are not. What belongs to whoever runs this belongs to root in it; root's own directories keep their owners.
 */
export function packRoot(root: string): Readable {
  return Readable.from(bytesOf(root, "", new Map()), { objectMode: false });
}

async function* bytesOf(root: string, folder: string, seen: Map<string, string>): AsyncGenerator<Buffer> {
  if (folder === "") yield headerOf(await entryOf(root, "."));
  // names are bytes, whatever their encoding
  const names = (await readdir(Buffer.from(join(root, folder), "latin1"), { encoding: "buffer" })).map((name) => name.toString("latin1"));
  for (const name of names.sort((a, b) => (a < b ? -1 : 1))) {
    const path = folder === "" ? name : `${folder}/${name}`;
    const found = await lstat(pathOf(root, path));
    if (found.isSocket()) continue;
    const entry = await entryOf(root, path);
    const first = seen.get(`${String(found.dev)}:${String(found.ino)}`);
    if (first !== undefined) yield headerOf({ ...entry, type: "link", size: 0, target: first });
    else {
      if (found.nlink > 1 && !found.isDirectory()) seen.set(`${String(found.dev)}:${String(found.ino)}`, path);
      yield headerOf(entry);
      if (entry.type === "file") yield* contentOf(pathOf(root, path), entry.size);
      if (entry.type === "directory") yield* bytesOf(root, path, seen);
    }
  }
  if (folder === "") yield endOfTar();
}

async function* contentOf(path: Buffer, size: number): AsyncGenerator<Buffer> {
  let bytes = 0;
  // a file that grows meanwhile must not shift what follows
  if (size > 0)
    for await (const chunk of createReadStream(path, { end: size - 1 }) as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      yield chunk;
    }
  if (bytes !== size) throw new Error(`${path.toString()} became shorter while it was read`);
  yield paddingOf(size);
}

async function entryOf(root: string, path: string): Promise<TarEntry> {
  const found = await lstat(pathOf(root, path));
  const type = typeOf(found);
  const device = type === "character" || type === "block" ? found.rdev : 0;
  const own = process.getuid?.() ?? 0;
  return {
    path,
    type,
    mode: type === "symlink" ? 0o777 : found.mode & 0o7777,
    uid: found.uid === own ? 0 : found.uid,
    gid: own !== 0 && found.gid === process.getgid?.() ? 0 : found.gid,
    mtime: 0,
    size: type === "file" ? found.size : 0,
    target: type === "symlink" ? (await readlink(pathOf(root, path), { encoding: "buffer" })).toString("latin1") : "",
    major: (device >> 8) & 0xfff,
    minor: (device & 0xff) | ((device >> 12) & 0xfff00),
    xattrs: {},
  };
}

function typeOf(found: Awaited<ReturnType<typeof lstat>>): EntryType {
  if (found.isDirectory()) return "directory";
  if (found.isSymbolicLink()) return "symlink";
  if (found.isCharacterDevice()) return "character";
  if (found.isBlockDevice()) return "block";
  return found.isFIFO() ? "fifo" : "file";
}

function pathOf(root: string, path: string): Buffer {
  return Buffer.concat([Buffer.from(`${root}/`), Buffer.from(path, "latin1")]);
}
