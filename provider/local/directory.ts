import { createReadStream } from "node:fs";
import { lstat, readdir, readlink } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { pack, type Pack } from "tar-stream";

/** A tar that depends on names, content and permission bits only: sorted, without times and owners. */
export function packDirectory(root: string): Readable {
  const archive = pack();
  void addEntries(archive, root, "").then(
    () => archive.finalize(),
    (error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))),
  );
  // tar-stream's own stream type is streamx; Node's is what consumers expect
  return Readable.from(archive, { objectMode: false });
}

const neutral = { mtime: new Date(0), uid: 0, gid: 0, uname: "", gname: "" };

async function addEntries(archive: Pack, root: string, folder: string): Promise<void> {
  const names = (await readdir(join(root, folder))).sort((a, b) => (a < b ? -1 : 1));
  for (const entryName of names) {
    const name = folder === "" ? entryName : `${folder}/${entryName}`;
    const path = join(root, name);
    const found = await lstat(path);
    const mode = found.mode & 0o777;
    if (found.isDirectory()) {
      await addEntry(archive, { ...neutral, name: `${name}/`, type: "directory", mode });
      await addEntries(archive, root, name);
    } else if (found.isSymbolicLink()) {
      await addEntry(archive, { ...neutral, name, type: "symlink", linkname: await readlink(path), mode: 0o777 });
    } else if (found.isFile()) {
      await pipeline(createReadStream(path), archive.entry({ ...neutral, name, type: "file", mode, size: found.size }));
    }
  }
}

function addEntry(archive: Pack, header: Parameters<Pack["entry"]>[0]): Promise<void> {
  return new Promise((resolve, reject) => {
    archive.entry(header, (error) => (error ? reject(error) : resolve()));
  });
}
