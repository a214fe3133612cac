import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { deltaOf } from "../../archive/delta.ts";
import type { Source } from "../../archive/tree.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Guest, Progress } from "../types.ts";
import { diskMap, insideOf } from "./idmap.ts";
import { withPlain } from "./images.ts";
import { imagesDirectory, mustHave } from "./instances.ts";
import { exportBackup, removeExports } from "./parts.ts";
import { readOnce } from "./state.ts";

/** Where LXD's own export has the root file system, with the ids that are on the disk. */
const rootInBackup = "backup/container/rootfs";

/** What differs between a stopped container's root file system and its base. */
export async function readRootDelta(rest: Rest, guest: Guest, { root, progress }: { root: string; progress: Progress }): Promise<Readable> {
  const path = join(guest.directory, "delta", "delta.tar");
  const base = { digest: guest.spec.base.digest, path: guest.basePath };
  await mkdir(dirname(path), { recursive: true });
  try {
    const map = diskMap(await mustHave(rest, guest, progress.signal));
    const [part] = await exportBackup(rest, guest, progress);
    if (part === undefined) throw new CloudletError("FAILED", `${rest.label} exports nothing of ${guest.name}`);
    progress.status(`comparing ${guest.name} with its base`);
    await withPlain(base, { directory: imagesDirectory(root), progress }, async (plain) => {
      const below = { ...sourceOf("the base", plain.path), ...(plain.unified && { strip: "rootfs" }) };
      const above = { ...sourceOf(`the container ${guest.name}`, part.path), strip: rootInBackup, translate: insideOf(map) };
      await pipeline(await deltaOf(below, above), createWriteStream(path, { mode: 0o600 }), { signal: progress.signal });
    });
  } catch (error) {
    await rm(dirname(path), { recursive: true, force: true });
    throw error;
  } finally {
    await removeExports(guest);
  }
  return readOnce(path);
}

function sourceOf(name: string, path: string): Source {
  return { name, open: () => createReadStream(path) as AsyncIterable<Buffer> };
}
