import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { dirname, join, posix } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { pipeline } from "node:stream/promises";
import { pack, type Pack } from "tar-stream";
import { CloudletError } from "../../core/errors.ts";
import type { Guest, Progress } from "../types.ts";
import { makeDirectory, makeParents, makeSymlink, readPath, removeTree, writeFile, type Files } from "./files.ts";
import { addEntry, asError, readTar, type TarEntry } from "./tarStreams.ts";

/** Copies the state files of a guest that is stopped into a tar on disk. */
export async function packState(files: Files, guest: Guest, progress: Progress): Promise<string> {
  const path = join(guest.directory, "export", "state.tar");
  await mkdir(dirname(path), { recursive: true });
  const tar = pack();
  const fill = async () => {
    for (const stateFile of guest.spec.stateFiles) await packPath(tar, files, { path: posix.normalize(stateFile), progress });
    tar.finalize();
  };
  const filled = fill().catch((error: unknown) => {
    tar.destroy(asError(error));
    throw error;
  });
  try {
    await Promise.all([filled, pipeline(Readable.from(tar), createWriteStream(path, { mode: 0o600 }))]);
  } catch (error) {
    await rm(path, { force: true });
    throw error;
  }
  return path;
}

/** A file that is gone once it was read. */
export function readOnce(path: string): Readable {
  const stream = createReadStream(path);
  stream.once("close", () => void rm(path, { force: true }).catch(() => undefined));
  return stream;
}

/** Puts a tar of state files into a stopped guest, in place of what its base has at these paths. */
export async function unpackState(files: Files, guest: Guest, source: { tar: Readable; progress: Progress }): Promise<void> {
  for (const stateFile of guest.spec.stateFiles) await removeTree(files, stateFile.replace(/(.)\/+$/, "$1"));
  for await (const entry of readTar(source.tar)) {
    source.progress.signal.throwIfAborted();
    await unpackEntry(files, entry, { below: "/", progress: source.progress });
    entry.resume();
  }
}

async function packPath(tar: Pack, files: Files, at: { path: string; progress: Progress }): Promise<void> {
  const { path, progress } = at;
  progress.signal.throwIfAborted();
  const found = await readPath(files, path);
  if (found === undefined) {
    progress.status(`${files.guest} has no ${path}`);
    return;
  }
  const { uid, gid, mode, modified: mtime } = found;
  const header = { name: path.replace(/^\/+|\/+$/g, ""), uid, gid, mode, mtime };
  if (found.type === "directory") {
    await addEntry(tar, { ...header, type: "directory" });
    for (const name of found.names.sort()) await packPath(tar, files, { path: posix.join(path, name), progress });
  } else if (found.type === "symlink") await addEntry(tar, { ...header, type: "symlink", linkname: found.target });
  else await addEntry(tar, { ...header, type: "file", size: found.bytes }, found.content);
}

/** Files API for one tar entry; also how a build's files get into a container. */
export async function unpackEntry(
  files: Files,
  entry: TarEntry,
  { below, progress }: { below: string; progress: Progress },
): Promise<void> {
  const { header } = entry;
  const path = inside(below, header.name);
  const attributes = { uid: header.uid ?? 0, gid: header.gid ?? 0, mode: header.mode ?? 0o644 };
  if (path === below || path === "/") return;
  await makeParents(files, path);
  switch (header.type) {
    case "directory":
      return makeDirectory(files, path, attributes);
    case "symlink":
      return makeSymlink(files, path, header.linkname ?? "");
    case "file":
    case "contiguous-file":
      return writeFile(files, path, { ...attributes, content: await contentOf(entry) });
    case "link": {
      const original = await readPath(files, inside(below, header.linkname ?? ""));
      if (original?.type !== "file")
        throw new CloudletError("INTEGRITY", `${header.name} is a link to ${header.linkname ?? "nothing"}, which is not there`);
      return writeFile(files, path, { ...attributes, content: await buffer(original.content) });
    }
    default:
      progress.status(`left out ${header.name}: a ${header.type ?? "strange entry"} is not carried`);
  }
}

// small files are sent with their length known, which is faster
async function contentOf(entry: TarEntry): Promise<Buffer | Readable> {
  if ((entry.header.size ?? 0) > 1024 * 1024) return Readable.from(entry);
  const chunks: Buffer[] = [];
  for await (const chunk of entry) if (Buffer.isBuffer(chunk)) chunks.push(chunk);
  return Buffer.concat(chunks);
}

function inside(below: string, name: string): string {
  const path = posix.join(below, posix.join("/", name)).replace(/(.)\/+$/, "$1");
  return path;
}
