import { lstat, mkdir, open, readdir, readlink } from "node:fs/promises";
import type { FileHandle } from "node:fs/promises";
import { dirname, join } from "node:path";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";

/** The largest ext file system on a raw disk, as a byte offset: on the whole disk, or in one of its partitions. */
export async function findExt(disk: string): Promise<number | undefined> {
  const handle = await open(disk, "r");
  try {
    const found: { offset: number; blocks: number }[] = [];
    for (const offset of [0, ...(await partitionOffsets(handle))]) {
      const superblock = await readAt(handle, offset + 1024, 1024);
      if (superblock.readUInt16LE(56) === 0xef53)
        found.push({ offset, blocks: superblock.readUInt32LE(4) * 2 ** superblock.readUInt32LE(24) });
    }
    return found.sort((a, b) => b.blocks - a.blocks)[0]?.offset;
  } finally {
    await handle.close();
  }
}

/** Replays the journal and repairs what is safe to repair, as a boot would. */
export async function checkExt(device: string, signal: AbortSignal): Promise<void> {
  const { exitCode, stdout } = await run(["e2fsck", "-p", device], { timeoutMillis: 300_000, signal, okCodes: [0, 1, 2, 4, 8, 12] });
  if (exitCode > 1)
    throw new CloudletError("INTEGRITY", `the guest's file system needs repair by hand: ${stdout.trim().slice(-500)}`, {
      fix: "start the cloudlet and check its disk",
    });
}

/** Copies paths of an ext file system, owners and modes included, below `directory`. Paths that are not there are left out; the others are returned, relative. */
export async function dumpTree(device: string, paths: string[], target: { directory: string; signal: AbortSignal }): Promise<string[]> {
  const dumped: string[] = [];
  for (const path of paths) {
    const parent = join(target.directory, path === "/" ? "/" : dirname(path));
    await mkdir(parent, { recursive: true });
    const missing = (await debugfs(device, [`stat ${quoted(path)}`], { signal: target.signal })).some((line) =>
      line.includes("File not found"),
    );
    if (missing) continue;
    const complaints = await debugfs(device, [`rdump ${quoted(path)} ${quoted(parent)}`], { signal: target.signal });
    if (complaints.length > 0)
      throw new CloudletError("FAILED", `${path} cannot be copied from the guest's disk: ${complaints.join("; ")}`);
    dumped.push(path.slice(1));
  }
  return dumped;
}

/** Writes what lies below `directory` into an ext file system. Directories above `owned` paths keep their owners and modes. */
export async function writeTree(device: string, directory: string, options: { owned: string[]; signal: AbortSignal }): Promise<void> {
  const isOwned = (path: string) => options.owned.some((root) => path === root || path.startsWith(`${root}/`));
  const makes: string[] = [];
  const writes: string[] = [];
  for (const { path, source } of await walk(directory, "")) {
    const info = await lstat(source);
    const name = quoted(path);
    if (info.isDirectory()) makes.push(`mkdir ${name}`);
    else if (info.isSymbolicLink()) {
      makes.push(`rm ${name}`);
      writes.push(`symlink ${name} ${quoted(await readlink(source))}`);
    } else if (info.isFile()) {
      makes.push(`rm ${name}`);
      writes.push(`write ${quoted(source)} ${name}`);
    } else continue;
    if (!isOwned(path) || info.isSymbolicLink()) continue;
    const fields = {
      mode: `0${info.mode.toString(8)}`,
      uid: info.uid,
      gid: info.gid,
      mtime: `@${String(Math.floor(info.mtimeMs / 1000))}`,
    };
    for (const [field, value] of Object.entries(fields)) writes.push(`set_inode_field ${name} ${field} ${String(value)}`);
  }
  // existing directories and missing old files are no errors
  await debugfs(device, makes, { signal: options.signal, write: true });
  const complaints = await debugfs(device, writes, { signal: options.signal, write: true });
  if (complaints.length > 0)
    throw new CloudletError("FAILED", `state files cannot be written to the guest's disk: ${complaints.slice(0, 3).join("; ")}`, {
      fix: "use a larger base or fewer state files",
    });
}

/** debugfs ends with 0 whatever happens; its complaints are what it writes to stderr. */
async function debugfs(device: string, commands: string[], options: { signal: AbortSignal; write?: boolean }): Promise<string[]> {
  if (commands.length === 0) return [];
  const { stderr } = await run(["debugfs", ...(options.write === true ? ["-w"] : []), "-f", "-", device], {
    stdin: `${commands.join("\n")}\n`,
    timeoutMillis: 600_000,
    signal: options.signal,
  });
  return stderr.split("\n").filter((line) => line.trim() !== "" && !/^debugfs \d/.test(line));
}

/** debugfs has no escape for quotes and line ends. */
function quoted(path: string): string {
  if (/["\n\r]/.test(path))
    throw new CloudletError("INVALID", `the path ${JSON.stringify(path)} cannot be copied to or from a guest's disk`, {
      fix: "use a name without quotes and line ends",
    });
  return `"${path}"`;
}

async function walk(directory: string, prefix: string): Promise<{ path: string; source: string }[]> {
  const found: { path: string; source: string }[] = [];
  for (const entry of (await readdir(directory, { withFileTypes: true })).sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = `${prefix}/${entry.name}`;
    const source = join(directory, entry.name);
    found.push({ path, source });
    if (entry.isDirectory()) found.push(...(await walk(source, path)));
  }
  return found;
}

const sector = 512;

async function partitionOffsets(handle: FileHandle): Promise<number[]> {
  const mbr = await readAt(handle, 0, sector);
  if (mbr.readUInt16LE(510) !== 0xaa55) return [];
  const header = await readAt(handle, sector, sector);
  if (header.toString("latin1", 0, 8) !== "EFI PART")
    return [446, 462, 478, 494].map((at) => mbr.readUInt32LE(at + 8) * sector).filter((offset) => offset > 0);
  const [start, count, size] = [Number(header.readBigUInt64LE(72)), Math.min(header.readUInt32LE(80), 256), header.readUInt32LE(84)];
  const table = await readAt(handle, start * sector, count * size);
  return Array.from({ length: count }, (_, index) => Number(table.readBigUInt64LE(index * size + 32)) * sector).filter(
    (offset) => offset > 0,
  );
}

async function readAt(handle: FileHandle, position: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length);
  await handle.read(bytes, 0, length, position);
  return bytes;
}
