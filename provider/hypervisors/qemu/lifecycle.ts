import { createHash } from "node:crypto";
import { chmod, chown, mkdtemp, open, rename, rm, stat } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { forgetProcess, kill, livePid, processOutput, spawnDetached, waitGone } from "../../agent/detached.ts";
import { readJson, writeDurably } from "../../agent/durable.ts";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Guest, GuestState, Progress } from "../types.ts";
import { probeAcceleration } from "./acceleration.ts";
import { commandLine } from "./commandLine.ts";
import { enterableCgroups, removeCgroups } from "./confinement.ts";
import type { Confinement } from "./confinement.ts";
import { growDisk } from "./disks.ts";
import { guestAgent } from "./guestAgent.ts";
import { exists, guestFiles, launchSchema, mustExist } from "./guestFiles.ts";
import type { Launch } from "./guestFiles.ts";
import { connectQmp } from "./qmp.ts";
import type { Qmp } from "./qmp.ts";
import { migrationEnded, pause, powerdown, queryStatus, quit, resume } from "./qmpCommands.ts";
import { seedOf, volumeSerial } from "./seed.ts";
import { forgetSuspended, saveState, sendState, suspendFile } from "./suspend.ts";
import { ensureTap, removeTap } from "./tap.ts";

export interface Surroundings {
  confinement: Confinement;
  log(line: string): void;
}

export async function observe(guest: Guest): Promise<GuestState | undefined> {
  if ((await livePid(guest.directory)) !== undefined) {
    const state = await withQmp(guest, guestFiles(guest).status, queryStatus).catch((error: unknown) => {
      if (codeOf(error) === "UNREACHABLE") return undefined;
      throw error;
    });
    if (state !== undefined) return "running";
    // it may have ended while it was asked
    if ((await livePid(guest.directory)) !== undefined)
      throw new CloudletError("UNREACHABLE", `QEMU of guest ${guest.name} runs and does not answer`);
  }
  if (!(await exists(guestFiles(guest).disk))) return undefined;
  return (await suspendFile(guest.directory)) === undefined ? "stopped" : "suspended";
}

/** Digest of everything that a running guest takes in only at its next start. */
export function settingsOf(guest: Guest): string {
  const { resources, base } = guest.spec;
  return createHash("sha256")
    .update(JSON.stringify([resources, base, guest.volumes, guest.network, seedOf(guest).instanceId]))
    .digest("hex");
}

export async function start(guest: Guest, around: Surroundings, progress: Progress): Promise<void> {
  await mustExist(guest);
  if ((await livePid(guest.directory)) !== undefined) return continueGuest(guest);
  const saved = await suspendFile(guest.directory);
  const { accelerator, reason } = await probeAcceleration();
  if (accelerator === "tcg") around.log(reason);
  // what was declared meanwhile shows after a restart, like that of a running guest
  const launch = saved === undefined ? launchOf(guest, accelerator) : await suspendedLaunch(guest, accelerator);
  const place = saved === undefined ? undefined : await mkdtemp("/run/cloudlet-resume-");
  try {
    if (saved === undefined) {
      await growDisk(guestFiles(guest).disk, guest.spec.resources.diskMib);
      await writeDurably(guestFiles(guest).launch, JSON.stringify(launch), 0o600);
    }
    const incoming = place === undefined ? undefined : join(place, "state.sock");
    await launchProcess(guest, launch, { around, incoming });
    if (saved !== undefined && incoming !== undefined) await resumeFrom(guest, { saved, incoming, progress });
  } catch (error) {
    await end(guest);
    throw error;
  } finally {
    if (place !== undefined) await rm(place, { recursive: true, force: true });
  }
}

/** Asks the guest's agent or its ACPI to power off, and ends it after 10 s. */
export async function stop(guest: Guest, around: Surroundings, progress: Progress): Promise<void> {
  if ((await suspendFile(guest.directory)) !== undefined) await wakeToStop(guest, around, progress);
  if ((await livePid(guest.directory)) !== undefined) {
    progress.status(`shutting down ${guest.name}`);
    await continueGuest(guest).catch(() => undefined);
    const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
    const asked =
      (await agent.ping(1_000)) &&
      (await agent.shutdown().then(
        () => true,
        () => false,
      ));
    if (!asked) await withQmp(guest, guestFiles(guest).qmp, powerdown).catch(() => undefined);
    if (!(await waitGone(guest.directory, 10_000))) around.log(`guest ${guest.name} did not shut down within 10 s and was ended`);
  }
  await end(guest);
}

export async function suspend(guest: Guest, around: Surroundings, progress: Progress): Promise<void> {
  await mustExist(guest);
  if ((await livePid(guest.directory)) === undefined) {
    if ((await suspendFile(guest.directory)) !== undefined) return;
    throw new CloudletError("REFUSED", `guest ${guest.name} is stopped and has no memory to suspend`, { fix: "start it first" });
  }
  await withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
    // a complete state beside a paused guest: an earlier run was interrupted just before the end
    if ((await suspendFile(guest.directory)) !== undefined && !(await queryStatus(qmp)).running) return;
    progress.status(`saving the memory of ${guest.name}`);
    await pause(qmp);
    await saveState(qmp, guest.directory, { user: around.confinement.user, signal: progress.signal }).catch(async (error: unknown) => {
      await resume(qmp).catch(() => undefined);
      throw error;
    });
  });
  await end(guest);
}

/** Ends the process at once, and removes what belongs to a running guest only. */
export async function end(guest: Guest): Promise<void> {
  if ((await livePid(guest.directory)) !== undefined) {
    await withQmp(guest, guestFiles(guest).qmp, quit).catch(() => undefined);
    if (!(await waitGone(guest.directory, 3_000))) await kill(guest.directory, `guest ${guest.name}`);
  }
  await forgetProcess(guest.directory);
  await removeTap(guest.name);
  await removeCgroups(guest.name);
  const { qmp, status, guestAgent: agentSocket } = guestFiles(guest);
  for (const socket of [qmp, status, agentSocket]) await rm(socket, { force: true });
}

export async function withQmp<T>(guest: Guest, socketPath: string, work: (qmp: Qmp) => Promise<T>): Promise<T> {
  const qmp = await connectQmp(socketPath, { guest: guest.name });
  try {
    return await work(qmp);
  } finally {
    qmp.close();
  }
}

/** A guest found paused was left so by an interrupted suspend: its saved memory is out of date the moment it runs on. */
async function continueGuest(guest: Guest): Promise<void> {
  await withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
    if ((await queryStatus(qmp)).running) return;
    await forgetSuspended(guest.directory);
    await resume(qmp);
  });
}

async function launchProcess(guest: Guest, launch: Launch, options: { around: Surroundings; incoming: string | undefined }): Promise<void> {
  const { confinement, log } = options.around;
  const files = guestFiles(guest);
  await end(guest);
  await rotateConsole(files.console);
  const volumes = guest.volumes.filter(({ id }) => launch.volumes?.includes(id) ?? true);
  for (const path of [files.disk, files.console, ...volumes.map((volume) => volume.hostPath)]) {
    if (confinement.user !== undefined) await chown(path, confinement.user.uid, confinement.user.gid);
    await chmod(path, 0o600);
  }
  const argv = commandLine({
    name: guest.name,
    accelerator: launch.accelerator,
    cores: launch.cores,
    memoryMib: launch.memoryMib,
    disk: files.disk,
    seed: files.seed,
    volumes: volumes.map((volume) => ({ path: volume.hostPath, serial: volumeSerial(volume.id) })),
    nic: { tap: await ensureTap(guest.name, guest.network.bridge, confinement.user?.name), mac: guest.network.mac },
    sockets: { qmp: files.qmp, status: files.status, guestAgent: files.guestAgent },
    console: files.console,
    user: confinement.user?.name,
    sandbox: confinement.sandbox,
    incoming: options.incoming,
  });
  const cgroups = await enterableCgroups(guest.name, launch, log);
  const { exited } = await spawnDetached(guest.directory, argv, { cgroups });
  await monitorAnswers(guest, exited);
}

async function monitorAnswers(guest: Guest, exited: () => number | undefined): Promise<void> {
  const deadline = Date.now() + 20_000;
  for (;;) {
    const answers = await withQmp(guest, guestFiles(guest).qmp, queryStatus).then(
      () => true,
      () => false,
    );
    if (answers) return;
    if (exited() !== undefined)
      throw new CloudletError("FAILED", `QEMU of guest ${guest.name} ended at its start: ${await processOutput(guest.directory)}`);
    if (Date.now() > deadline)
      throw new CloudletError("TIMEOUT", `QEMU of guest ${guest.name} did not answer within 20 s: ${await processOutput(guest.directory)}`);
    await delay(15);
  }
}

const bootInstead = "set the cloudlet's state to stopped, then to running: it boots from its disk";

function launchOf(guest: Guest, accelerator: Launch["accelerator"]): Launch {
  const { cores, memoryMib } = guest.spec.resources;
  return { accelerator, cores, memoryMib, volumes: guest.volumes.map(({ id }) => id), settings: settingsOf(guest) };
}

async function suspendedLaunch(guest: Guest, accelerator: Launch["accelerator"]): Promise<Launch> {
  const then = await readJson(guestFiles(guest).launch, launchSchema);
  if (then?.accelerator === accelerator) return then;
  throw new CloudletError(
    "REFUSED",
    `guest ${guest.name} was suspended with accelerator ${String(then?.accelerator)} and cannot resume with ${accelerator}`,
    { fix: bootInstead },
  );
}

async function resumeFrom(guest: Guest, state: { saved: string; incoming: string; progress: Progress }): Promise<void> {
  try {
    await sendState(state.saved, state.incoming, state.progress.signal);
    await withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
      await migrationEnded(qmp, `loading the memory of ${guest.name}`, { signal: state.progress.signal, timeoutMillis: 120_000 });
      // gone before the guest runs: memory must never be resumed twice over a disk that has moved on
      await forgetSuspended(guest.directory);
      await resume(qmp);
    });
  } catch (cause) {
    const output = await processOutput(guest.directory);
    throw new CloudletError("FAILED", `guest ${guest.name} cannot resume from its saved memory: ${output || String(cause)}`, {
      cause,
      fix: bootInstead,
    });
  }
}

/** Its newest writes are still in its memory, so it must run to write them down; memory that cannot be resumed is given up. */
async function wakeToStop(guest: Guest, around: Surroundings, progress: Progress): Promise<void> {
  try {
    await start(guest, around, progress);
  } catch (error) {
    around.log(`${error instanceof Error ? error.message : String(error)}; its saved memory is discarded`);
    await forgetSuspended(guest.directory);
  }
}

const consoleLimit = 4 * 1024 ** 2;

async function rotateConsole(path: string): Promise<void> {
  const size = await stat(path).then(
    (found) => found.size,
    () => 0,
  );
  if (size > consoleLimit) await rename(path, `${path}.1`);
  await (await open(path, "a", 0o600)).close();
}
