import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import type { Readable } from "node:stream";
import { CloudletError } from "../../core/errors.ts";
import type { Guest, Progress } from "../types.ts";
import { checkExt, dumpTree, findExt, writeTree } from "./extFilesystem.ts";
import { guestAgent } from "./guestAgent.ts";
import { guestFiles, mustExist } from "./guestFiles.ts";
import { withQmp } from "./launch.ts";
import { end, observe, start, stop } from "./lifecycle.ts";
import type { Surroundings } from "./launch.ts";
import { pause } from "./qmpCommands.ts";
import { withRawView } from "./rawView.ts";
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

/** Writes go where the guest's own would. */
function withDiskView<T>(guest: Guest, progress: Progress, work: (device: string) => Promise<T>): Promise<T> {
  return withRawView(guestFiles(guest).disk, { format: "qcow2", writable: true, signal: progress.signal }, async (view) => {
    const offset = await findExt(view);
    if (offset === undefined)
      throw new CloudletError(
        "UNSUPPORTED",
        `the disk of guest ${guest.name} has no ext file system, so its state files cannot be reached`,
        { fix: "use a base with an ext4 root, or keep the state in a volume" },
      );
    const device = `${view}?offset=${String(offset)}`;
    await checkExt(device, progress.signal);
    return work(device);
  });
}
