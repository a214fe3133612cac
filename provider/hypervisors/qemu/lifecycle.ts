import { createHash } from "node:crypto";
import { mkdtemp, rm } from "node:fs/promises";
import { join } from "node:path";
import { forgetProcess, kill, processOutput, waitGone } from "../../agent/detached.ts";
import { exists, readJson, writeDurably } from "../../agent/durable.ts";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import type { Guest, GuestState, Progress } from "../types.ts";
import { probeAcceleration } from "./acceleration.ts";
import { removeCgroups } from "./confinement.ts";
import { growDisk } from "./disks.ts";
import { guestAgent } from "./guestAgent.ts";
import { guestFiles, launchSchema, mustExist } from "./guestFiles.ts";
import type { Launch } from "./guestFiles.ts";
import { isLive, launchProcess, openNic, withQmp } from "./launch.ts";
import type { Surroundings } from "./launch.ts";
import { closeMemoryView } from "./memoryView.ts";
import { answerDhcp, removeOwnNetwork } from "./ownNetwork.ts";
import { migrationEnded, pause, powerdown, queryStatus, quit, resume } from "./qmpCommands.ts";
import { ensureSeed, seedOf } from "./seed.ts";
import { forgetSuspended, saveState, sendState, suspendFile } from "./suspend.ts";
import { removeTap } from "./tap.ts";

export async function observe(guest: Guest): Promise<GuestState | undefined> {
  const launch = await readJson(guestFiles(guest).launch, launchSchema);
  // it was being resumed and never ran: whatever is there of it is no guest yet
  if (launch?.inside !== undefined && launch.ran !== true) return undefined;
  if (await isLive(guest)) {
    const state = await withQmp(guest, guestFiles(guest).status, queryStatus).catch((error: unknown) => {
      if (codeOf(error) === "UNREACHABLE") return undefined;
      throw error;
    });
    if (state !== undefined) return "running";
    // it may have ended while it was asked
    if (await isLive(guest)) {
      // QEMU itself may be waiting for a page that is on its way; whether it is, the agent knows
      if (await exists(guestFiles(guest).arriving)) return "running";
      throw new CloudletError("UNREACHABLE", `QEMU of guest ${guest.name} runs and does not answer`);
    }
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
  if (await isLive(guest)) return continueGuest(guest);
  const saved = await suspendFile(guest.directory);
  const { accelerator, reason } = await probeAcceleration();
  if (accelerator === "tcg") around.log(reason);
  // what was declared meanwhile shows after a restart, like that of a running guest
  const launch = saved === undefined ? launchOf(guest, accelerator) : await suspendedLaunch(guest, accelerator);
  const place = saved === undefined ? undefined : await mkdtemp("/run/cloudlet-resume-");
  try {
    if (saved === undefined) {
      // one that was resumed from an overlay never had one of its own
      await ensureSeed(guest, progress.signal);
      await growDisk(guestFiles(guest).disk, guest.spec.resources.diskMib);
      await writeDurably(guestFiles(guest).launch, JSON.stringify(launch), 0o600);
    }
    await end(guest);
    const incoming = place === undefined ? undefined : join(place, "state.sock");
    const nic = await openNic(guest, launch, around);
    await launchProcess(guest, launch, { around, nic, incoming: incoming === undefined ? undefined : `unix:${incoming}` });
    if (launch.inside !== undefined && nic.namespace !== undefined) await answerDhcp(guest, launch.inside);
    if (saved !== undefined && incoming !== undefined) {
      await resumeFrom(guest, { saved, incoming, progress });
      correctClock(guest, around);
    }
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
  if (await isLive(guest)) {
    progress.status(`shutting down ${guest.name}`);
    // its source is silent, so it cannot do anything more
    if (await exists(guestFiles(guest).held)) return end(guest);
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
  if (!(await isLive(guest))) {
    if ((await suspendFile(guest.directory)) !== undefined) return;
    throw new CloudletError("REFUSED", `guest ${guest.name} is stopped and has no memory to suspend`, { fix: "start it first" });
  }
  await mustHaveArrived(guest);
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
  if (await isLive(guest)) {
    await withQmp(guest, guestFiles(guest).qmp, quit).catch(() => undefined);
    if (!(await waitGone(guest.directory, 3_000)))
      await Promise.all([kill(guest.directory, `guest ${guest.name}`), closeMemoryView(guest, "at once")]);
  }
  await forgetProcess(guest.directory);
  await closeMemoryView(guest, "gently");
  await removeOwnNetwork(guest);
  await removeTap(guest.name);
  await removeCgroups(guest.name);
  const { qmp, status, guestAgent: agentSocket, arriving, held } = guestFiles(guest);
  for (const path of [qmp, status, agentSocket, arriving, held]) await rm(path, { force: true });
}

/** What reads all of a guest's memory or disk would wait for what is still coming. */
export async function mustHaveArrived(guest: Guest): Promise<void> {
  if (await exists(guestFiles(guest).arriving))
    throw new CloudletError("REFUSED", `the overlay of guest ${guest.name} is still coming to this node`, {
      fix: "wait until the cloudlet says that nothing is missing any more, then do it again",
    });
}

/** Not waited for: a guest without an agent never answers, and one with an agent need not be held up. */
export function correctClock(guest: Guest, around: Surroundings): void {
  const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
  void agent
    .ping(5_000)
    .then((answers) => (answers ? agent.setTime() : undefined))
    .catch((error: unknown) =>
      around.log(`the clock of guest ${guest.name} was not set: ${error instanceof Error ? error.message : String(error)}`),
    );
}

/** Never back: the node that it comes from may have a clock that is ahead of this one's. */
export async function catchUpClock(guest: Guest, { log }: Pick<Surroundings, "log">): Promise<void> {
  const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
  try {
    if (!(await agent.ping(5_000))) return;
    if ((await agent.time()) < Date.now()) await agent.setTime();
  } catch (error) {
    log(`the clock of guest ${guest.name} was not set: ${describeError(error)}`);
  }
}

/** A guest found paused was left so by an interrupted suspend: its saved memory is out of date the moment it runs on. */
export async function continueGuest(guest: Guest): Promise<void> {
  if (await exists(guestFiles(guest).held)) return;
  await withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
    if ((await queryStatus(qmp)).running) return;
    await forgetSuspended(guest.directory);
    await resume(qmp);
  });
}

const bootInstead = "set the cloudlet's state to stopped, then to running: it boots from its disk";

export function launchOf(guest: Guest, accelerator: Launch["accelerator"]): Launch {
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
