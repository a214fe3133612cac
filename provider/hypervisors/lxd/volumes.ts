import { createReadStream, createWriteStream } from "node:fs";
import { chmod, lchown, lstat, mkdir, readdir, readlink, rm, symlink } from "node:fs/promises";
import { dirname, join, resolve, sep } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { pack, type Pack } from "tar-stream";
import { z } from "zod";
import { readJson, writeDurably } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Progress } from "../types.ts";
import { volumeData } from "./mapping.ts";
import { addEntry, asError, readTar, type TarEntry, type TarHeader } from "./tarStreams.ts";

/*
 * A volume is a directory of the host. An unprivileged container sees its owners shifted, and not every kernel and
 * file system can shift a mount, so the owners on disk are shifted instead: `rootId` is the host's id for the
 * container's root that they are counted from now, `toward` the one they are being brought to.
 */
const noteSchema = z.object({ rootId: z.int(), toward: z.int().optional() });

/** Size is not enforced: a directory has no quota of its own. */
export async function createVolume(hostPath: string): Promise<void> {
  await mkdir(volumeData(hostPath), { recursive: true, mode: 0o755 });
  if ((await readJson(notePath(hostPath), noteSchema)) === undefined)
    await writeDurably(notePath(hostPath), JSON.stringify({ rootId: 0 }), 0o600);
}

/** Brings the owners of a volume's files to the ids of the container that it is attached to. */
export async function shiftVolume(hostPath: string, rootId: number): Promise<void> {
  const note = await readNote(hostPath);
  if (note.rootId === rootId && note.toward === undefined) return;
  await writeDurably(notePath(hostPath), JSON.stringify({ rootId: note.rootId, toward: rootId }), 0o600);
  await shiftTree(volumeData(hostPath), note.rootId, rootId);
  await writeDurably(notePath(hostPath), JSON.stringify({ rootId }), 0o600);
}

export async function readVolume(hostPath: string): Promise<Readable> {
  const { rootId } = await readNote(hostPath);
  const tar = pack();
  packTree(tar, { data: volumeData(hostPath), rootId }, "")
    .then(() => tar.finalize())
    .catch((error: unknown) => tar.destroy(asError(error)));
  return Readable.from(tar);
}

/** Replaces a volume's contents by those of a tar. */
export async function writeVolume(hostPath: string, tar: Readable, progress: Progress): Promise<void> {
  await createVolume(hostPath);
  const data = volumeData(hostPath);
  const { rootId } = await readNote(hostPath);
  for (const name of await readdir(data)) await rm(join(data, name), { recursive: true, force: true });
  for await (const entry of readTar(tar)) {
    progress.signal.throwIfAborted();
    await unpackEntry({ data, rootId }, entry.header, entry);
    entry.resume();
  }
}

function notePath(hostPath: string): string {
  return join(hostPath, "owners.json");
}

async function readNote(hostPath: string): Promise<z.infer<typeof noteSchema>> {
  const note = await readJson(notePath(hostPath), noteSchema);
  if (note === undefined) throw new CloudletError("NOT_FOUND", `there is no volume at ${hostPath}`);
  return note;
}

async function shiftTree(path: string, from: number, to: number): Promise<void> {
  const { uid, gid, mode } = await lstat(path);
  // after a crash half-way, what is already in the new range stays (0 -> base is the usual way, and ranges are far apart)
  const shifted = (id: number) => (inRange(id, to) && !inRange(id, from) ? id : inRange(id, from) ? id - from + to : id);
  if (shifted(uid) !== uid || shifted(gid) !== gid) {
    await lchown(path, shifted(uid), shifted(gid));
    // chown clears set-user-id bits
    if ((mode & 0o170000) !== 0o120000) await chmod(path, mode & 0o7777);
  }
  if ((mode & 0o170000) === 0o040000) for (const name of await readdir(path)) await shiftTree(join(path, name), from, to);
}

function inRange(id: number, rootId: number): boolean {
  return id >= rootId && id < rootId + 65_536;
}

interface Place {
  data: string;
  rootId: number;
}

async function packTree(tar: Pack, place: Place, inside: string): Promise<void> {
  const path = join(place.data, inside);
  const found = await lstat(path);
  const header: TarHeader = {
    name: inside,
    mode: found.mode & 0o7777,
    mtime: found.mtime,
    uid: Math.max(0, found.uid - place.rootId),
    gid: Math.max(0, found.gid - place.rootId),
  };
  if (found.isDirectory()) {
    // the top directory travels too: its owner and mode matter to the application
    await addEntry(tar, { ...header, name: inside === "" ? "./" : inside, type: "directory" });
    for (const name of (await readdir(path)).sort()) await packTree(tar, place, join(inside, name));
  } else if (found.isSymbolicLink()) await addEntry(tar, { ...header, type: "symlink", linkname: await readlink(path) });
  else if (found.isFile())
    await addEntry(
      tar,
      { ...header, type: "file", size: found.size },
      createReadStream(path, found.size === 0 ? {} : { end: found.size - 1 }),
    );
}

async function unpackEntry(place: Place, header: TarHeader, content: TarEntry): Promise<void> {
  const path = resolve(place.data, `.${sep}${header.name}`);
  if (path !== place.data && !path.startsWith(place.data + sep))
    throw new CloudletError("INTEGRITY", `a volume's tar names ${header.name}, outside the volume`);
  if (header.type !== "directory" && header.type !== "file" && header.type !== "symlink") return;
  await throughNoLink(place.data, path);
  if (header.type === "symlink") await symlink(header.linkname ?? "", path);
  else if (header.type === "directory") await mkdir(path, { recursive: true });
  else await pipeline(content, createWriteStream(path, { flags: "wx" }));
  await lchown(path, (header.uid ?? 0) + place.rootId, (header.gid ?? 0) + place.rootId);
  if (header.type !== "symlink") await chmod(path, (header.mode ?? 0o644) & 0o7777);
}

/** A link planted by an earlier entry must not lead out of the volume. */
async function throughNoLink(data: string, path: string): Promise<void> {
  if (path === data) return;
  for (let at = dirname(path); at !== data && at.startsWith(data); at = dirname(at)) {
    const found = await lstat(at).catch(() => undefined);
    if (found?.isSymbolicLink() === true) throw new CloudletError("INTEGRITY", `a volume's tar writes through the link ${at}`);
  }
  await mkdir(dirname(path), { recursive: true });
}
