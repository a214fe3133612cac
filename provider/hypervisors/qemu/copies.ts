import { constants, copyFile, link, mkdir, rename, rm } from "node:fs/promises";
import { basename, join } from "node:path";
import { exists, readJson, syncDirectory } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Guest, Part, Progress } from "../types.ts";
import { diskInfo, rebaseOverlay, snapshotOffline } from "./disks.ts";
import { guestAgent } from "./guestAgent.ts";
import { guestFiles, launchSchema, mustExist } from "./guestFiles.ts";
import { withQmp } from "./launch.ts";
import { end, mustHaveArrived, observe, start } from "./lifecycle.ts";
import type { Surroundings } from "./launch.ts";
import { queryStatus, resume, snapshotJob } from "./qmpCommands.ts";
import { forgetSuspended, suspendFile, suspendFiles } from "./suspend.ts";

/** Snapshots live inside the disk's qcow2, so they travel with it. A name that exists stays as it is. */
export async function snapshot(guest: Guest, name: string, progress: Progress): Promise<void> {
  await mustExist(guest);
  if ((await findSnapshot(guest, name)) !== undefined) return;
  const state = await observe(guest);
  if (state === "suspended")
    throw new CloudletError("REFUSED", `guest ${guest.name} is suspended; its newest writes are not on its disk`, {
      fix: "resume or stop it first",
    });
  if (state === "stopped") return snapshotOffline(guestFiles(guest).disk, "create", tagOf(name));
  await mustHaveArrived(guest);
  await flush(guest);
  const tag = (await isElsewhere(guest)) ? elsewhereTagOf(name) : tagOf(name);
  await withQmp(guest, guestFiles(guest).qmp, (qmp) =>
    snapshotJob(qmp, { command: "snapshot-save", tag, signal: progress.signal, timeoutMillis: jobMillis }),
  );
}

/** A running guest goes on running, from the snapshot's memory where it has one; a suspended guest becomes a stopped one. */
export async function restore(guest: Guest, name: string, options: { around: Surroundings; progress: Progress }): Promise<void> {
  await mustExist(guest);
  const found = await findSnapshot(guest, name);
  if (found === undefined)
    throw new CloudletError("NOT_FOUND", `guest ${guest.name} has no snapshot ${name}`, {
      fix: "take the snapshot first, or name another one",
    });
  const running = (await observe(guest)) === "running";
  const fits = found.ramBytes > 0 && (found.tag === elsewhereTagOf(name)) === (await isElsewhere(guest));
  if (running && fits && (await restoreRunning(guest, found.tag, options))) return;
  if (running) await end(guest);
  // first, so that memory never meets a disk of another time
  await forgetSuspended(guest.directory);
  await snapshotOffline(guestFiles(guest).disk, "apply", found.tag);
  if (running) await start(guest, options.around, options.progress);
}

export async function exportParts(guest: Guest): Promise<Part[]> {
  await mustExist(guest);
  if ((await observe(guest)) === "running")
    throw new CloudletError("REFUSED", `guest ${guest.name} runs and cannot be exported`, { fix: "stop or suspend it first" });
  const files = guestFiles(guest);
  const saved = await suspendFile(guest.directory);
  await rm(files.export, { recursive: true, force: true });
  await mkdir(files.export, { mode: 0o700 });
  const parts: Part[] = [];
  const withMemory = saved === undefined ? [] : [saved, files.launch, ...((await isElsewhere(guest)) ? [files.originSeed] : [])];
  for (const source of [files.disk, ...withMemory]) {
    const path = join(files.export, basename(source));
    await link(source, path);
    parts.push({ name: basename(source), path, format: "raw" });
  }
  return parts;
}

/** The disk comes last: without it there is no guest, so that an interrupted import is none. */
export async function importParts(guest: Guest, directory: string): Promise<void> {
  const files = guestFiles(guest);
  const disk = join(directory, basename(files.disk));
  if (!(await exists(disk))) {
    if (await exists(files.disk)) return;
    throw new CloudletError("INTEGRITY", `the parts of guest ${guest.name} hold no disk`, { fix: "run the move again" });
  }
  for (const name of [...suspendFiles, basename(files.launch), basename(files.originSeed)]) {
    if (await exists(join(directory, name))) await place(join(directory, name), join(guest.directory, name));
  }
  const temporary = `${files.disk}.import`;
  await place(disk, temporary);
  await rebaseOverlay(temporary, guest.basePath);
  await rename(temporary, files.disk);
  await syncDirectory(guest.directory);
}

const jobMillis = 300_000;

/** A prefix, because qemu-img takes a name of digits for a snapshot's number. */
function tagOf(name: string): string {
  return `cloudlet-${name}`;
}

/** Of memory that believes in another network: it fits only into a guest that runs in that network. */
function elsewhereTagOf(name: string): string {
  return `elsewhere-${name}`;
}

async function isElsewhere(guest: Guest): Promise<boolean> {
  return (await readJson(guestFiles(guest).launch, launchSchema))?.inside !== undefined;
}

async function findSnapshot(guest: Guest, name: string): Promise<{ tag: string; ramBytes: number } | undefined> {
  const { snapshots } = await diskInfo(guestFiles(guest).disk, "qcow2");
  const found = snapshots.find((candidate) => [tagOf(name), elsewhereTagOf(name)].includes(candidate.name));
  return found === undefined ? undefined : { tag: found.name, ramBytes: found.ramBytes };
}

/** So that the snapshot's disk alone is good to boot from too. */
async function flush(guest: Guest): Promise<void> {
  const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
  if (!(await agent.ping(1_000))) return;
  await agent.freeze().catch(() => 0);
  await agent.thaw();
}

async function restoreRunning(guest: Guest, tag: string, options: { around: Surroundings; progress: Progress }): Promise<boolean> {
  try {
    await withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
      await snapshotJob(qmp, { command: "snapshot-load", tag, signal: options.progress.signal, timeoutMillis: jobMillis });
      if (!(await queryStatus(qmp)).running) await resume(qmp);
    });
    return true;
  } catch (error) {
    options.around.log(
      `guest ${guest.name} boots from the snapshot's disk, as its memory cannot be loaded: ${error instanceof Error ? error.message : String(error)}`,
    );
    return false;
  }
}

async function place(from: string, to: string): Promise<void> {
  await rm(to, { force: true });
  await link(from, to).catch(() => copyFile(from, to, constants.COPYFILE_FICLONE));
}
