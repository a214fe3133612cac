import { createReadStream, createWriteStream } from "node:fs";
import { mkdir, rm, stat } from "node:fs/promises";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import type { Rest } from "../../transport/types.ts";
import { syncDirectory } from "../../agent/durable.ts";
import { run } from "../../agent/process.ts";
import type { Guest, Part, Progress } from "../types.ts";
import { ask, download, send } from "./client.ts";
import { deadlines, perform, waitOf } from "./operations.ts";

const backupName = "cloudlet-move";
/** LXD removes by itself what an agent that was killed meanwhile has left. */
const backupLifeMillis = 2 * deadlines.backup;
const processSchema = z.object({ pid: z.int().min(1) });
export const partName = "container.tar";

/** A container as LXD's own backup, uncompressed, so that pieces of the base are found in it. */
export async function exportBackup(rest: Rest, guest: Guest, progress: Progress): Promise<Part[]> {
  const path = join(guest.directory, "export", partName);
  await mkdir(dirname(path), { recursive: true });
  const backup = `/1.0/instances/${guest.name}/backups/${backupName}`;
  const what = `export ${guest.name}`;
  await removeBackup(rest, backup, progress);
  const expires = new Date(Date.now() + backupLifeMillis).toISOString();
  const body = { name: backupName, compression_algorithm: "none", instance_only: true, optimized_storage: false, expires_at: expires };
  await perform(rest, { method: "POST", path: dirname(backup), body, what }, waitOf(progress, deadlines.backup));
  try {
    const exported = await download(rest, { method: "GET", path: `${backup}/export`, what, signal: progress.signal });
    await pipeline(exported.body, createWriteStream(path, { mode: 0o600 }));
    await syncDirectory(dirname(path));
  } finally {
    // also after an abort
    await removeBackup(rest, backup, { ...progress, signal: AbortSignal.timeout(deadlines.remove) });
  }
  return [{ name: partName, path, format: "tar" }];
}

/** What the files of a running container take up, those of its volumes included; looked at from outside, wherever LXD's pool is. */
export async function runningBytes(rest: Rest, guest: Guest, progress: Progress): Promise<number> {
  const path = `/1.0/instances/${guest.name}/state`;
  const { pid } = await ask(rest, { method: "GET", path, what: `look at ${guest.name}`, signal: progress.signal }, processSchema);
  const root = `/proc/${String(pid)}/root/`;
  const options = { timeoutMillis: deadlines.walk, signal: progress.signal, okCodes: [0, 1] };
  // it complains about files that have gone meanwhile
  const { stdout } = await run(["du", "--summarize", "--one-file-system", "--block-size=1", root], options);
  return z.coerce.number().int().min(1).parse(stdout.split("\t")[0]);
}

/** Makes the container, stopped, as it was exported; the caller brings it to this host's devices. */
export async function importBackup(rest: Rest, guest: Guest, from: { path: string; pool: string; progress: Progress }): Promise<void> {
  const headers = {
    "content-type": "application/octet-stream",
    "content-length": String((await stat(from.path)).size),
    "x-lxd-name": guest.name,
    "x-lxd-pool": from.pool,
  };
  await perform(
    rest,
    { method: "POST", path: "/1.0/instances", headers, body: createReadStream(from.path), what: `import ${guest.name}` },
    waitOf(from.progress, deadlines.backup),
  );
}

/** What a move left below a guest's directory. */
export async function removeExports(guest: Guest): Promise<void> {
  await rm(join(guest.directory, "export"), { recursive: true, force: true });
}

async function removeBackup(rest: Rest, path: string, progress: Progress): Promise<void> {
  const there = await send(rest, { method: "GET", path, what: "look for an older export" }).catch(() => undefined);
  if (there !== undefined) await perform(rest, { method: "DELETE", path, what: "remove an export" }, waitOf(progress, deadlines.remove));
}
