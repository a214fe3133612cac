import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Guest, Progress } from "../types.ts";
import { checkExt, dumpTree, findExt, writeTree } from "./extFilesystem.ts";
import { guestAgent } from "./guestAgent.ts";
import { guestFiles, mustExist } from "./guestFiles.ts";
import { end, observe, start, stop, withQmp } from "./lifecycle.ts";
import type { Surroundings } from "./lifecycle.ts";
import { pause } from "./qmpCommands.ts";
import { tarAndRemove, untar } from "./tarDirectory.ts";

/**
 * Reads spec.stateFiles from the guest's disk. The guest agent answers nothing while file systems are frozen, so a running
 * guest is frozen (its caches are then on the disk), ended while it is, and read from outside.
 */
export async function exportState(guest: Guest, around: Surroundings, progress: Progress): Promise<Readable> {
  await mustExist(guest);
  if ((await observe(guest)) === "suspended") await start(guest, around, progress);
  if ((await observe(guest)) === "running") await quiesceAndEnd(guest, around, progress);
  const directory = await mkdtemp(join(guest.directory, "state-"));
  try {
    const names = await withDiskView(guest, progress, (device) =>
      dumpTree(device, guest.spec.stateFiles, { directory, signal: progress.signal }),
    );
    return tarAndRemove(directory, names, progress.signal);
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
}

/** Writes the files into the disk itself and not into the seed: of any size, with their owners, and never again at a later boot. */
export async function importState(guest: Guest, tar: Readable, progress: Progress): Promise<void> {
  await mustExist(guest);
  if ((await observe(guest)) !== "stopped")
    throw new CloudletError("REFUSED", `state files can only be put into guest ${guest.name} while it is stopped`, {
      fix: "stop it first",
    });
  const directory = await mkdtemp(join(guest.directory, "state-"));
  try {
    await untar(tar, directory, progress.signal);
    await withDiskView(guest, progress, (device) =>
      writeTree(device, directory, { owned: guest.spec.stateFiles, signal: progress.signal }),
    );
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function quiesceAndEnd(guest: Guest, around: Surroundings, progress: Progress): Promise<void> {
  const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
  const frozen = await agent.freeze().catch((error: unknown) => {
    around.log(`guest ${guest.name} cannot be frozen and is shut down instead: ${error instanceof Error ? error.message : String(error)}`);
    return 0;
  });
  if (frozen === 0) return stop(guest, around, progress);
  await withQmp(guest, guestFiles(guest).qmp, pause);
  await end(guest);
}

/** Shows the qcow2 overlay as a raw file through FUSE: nothing is copied, and writes go where the guest's own would. */
async function withDiskView<T>(guest: Guest, progress: Progress, work: (device: string) => Promise<T>): Promise<T> {
  const place = await mkdtemp("/run/cloudlet-view-");
  const view = join(place, "disk.raw");
  const pidFile = join(place, "pid");
  await writeFile(view, "");
  const nodes = [
    { driver: "file", "node-name": "file", filename: guestFiles(guest).disk },
    { driver: "qcow2", "node-name": "disk", file: "file" },
  ].flatMap((node) => ["--blockdev", JSON.stringify(node)]);
  const fuse = JSON.stringify({ type: "fuse", id: "view", "node-name": "disk", mountpoint: view, writable: true });
  try {
    await run(["qemu-storage-daemon", ...nodes, "--export", fuse, "--pidfile", pidFile, "--daemonize"], {
      timeoutMillis: 30_000,
      signal: progress.signal,
    });
    const offset = await findExt(view);
    if (offset === undefined)
      throw new CloudletError(
        "UNSUPPORTED",
        `the disk of guest ${guest.name} has no ext file system, so its state files cannot be reached`,
        { fix: "use a base with an ext4 root, or keep the state in a volume" },
      );
    const device = `${view}?offset=${String(offset)}`;
    await checkExt(device, progress.signal);
    return await work(device);
  } finally {
    await endDaemon(pidFile);
    await rm(place, { recursive: true, force: true });
  }
}

async function endDaemon(pidFile: string): Promise<void> {
  const pid = Number(await readFile(pidFile, "utf8").catch(() => ""));
  if (!(pid > 1)) return;
  const alive = () => {
    try {
      return process.kill(pid, 0);
    } catch {
      return false;
    }
  };
  if (alive()) process.kill(pid, "SIGTERM");
  const deadline = Date.now() + 10_000;
  while (alive()) {
    if (Date.now() > deadline) throw new CloudletError("TIMEOUT", "the view of a guest's disk was not closed within 10 s");
    await delay(10);
  }
}
