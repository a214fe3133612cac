import { once } from "node:events";
import { copyFile, open, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import type { Duplex } from "node:stream";
import { codeOf, CloudletError } from "../../core/errors.ts";
import { processOutput } from "../../agent/detached.ts";
import { exists, readJson, writeDurably } from "../../agent/durable.ts";
import type { Machine } from "../../agent/protocol.ts";
import type { Guest, Origin, Progress } from "../types.ts";
import { probeAcceleration } from "./acceleration.ts";
import { machineType } from "./commandLine.ts";
import { createOverlay, createUnchecked } from "./disks.ts";
import { guestFiles, launchSchema, mustExist } from "./guestFiles.ts";
import type { Launch } from "./guestFiles.ts";
import { isLive, launchProcess, openNic, withQmp } from "./launch.ts";
import type { LaunchOptions, Surroundings } from "./launch.ts";
import { isArriving, layerNodes, settleCommands } from "./layers.ts";
import { continueGuest, correctClock, end, launchOf } from "./lifecycle.ts";
import { copyMemory, openMemoryView } from "./memoryView.ts";
import { answerDhcp } from "./ownNetwork.ts";
import { connectQmp } from "./qmp.ts";
import type { Qmp } from "./qmp.ts";
import { blockNodeNames, leaveOutShared, loadFrom, migrationEnded, pause, resume as letRun } from "./qmpCommands.ts";
import { ensureSeed } from "./seed.ts";

/** What guests are pinned to that other nodes are to resume: under emulation every node has the same processor, else the oldest of today's. */
const processors: Record<"kvm" | "tcg", Machine["cpu"]> = {
  tcg: { model: "qemu64", flags: [] },
  kvm: { model: "Nehalem", flags: ["cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"] },
};

export async function machine(resources: { cores: number; memoryMib: number }): Promise<Machine> {
  const { accelerator } = await probeAcceleration();
  return { type: machineType, accelerator, cpu: processors[accelerator], ...resources };
}

/** Makes the guest, stopped, over an image; what it would find in a seed is on that image already, but for its volumes. */
export async function makeOver(guest: Guest, disk: string, progress: Progress): Promise<void> {
  const files = guestFiles(guest);
  await ensureSeed(guest, progress.signal);
  if (!(await exists(files.disk))) await createOverlay(files.disk, disk, guest.spec.resources.diskMib);
}

interface Wanted {
  guest: Guest;
  origin: Origin;
  around: Surroundings;
  progress: Progress;
}

/** Resumes the guest out of an overlay: everything that takes time is done side by side. */
export async function resume(wanted: Wanted): Promise<void> {
  const { guest, origin, around, progress } = wanted;
  const files = guestFiles(guest);
  if (await continueResumed(guest)) return;
  progress.status(`resuming ${guest.name}`);
  const launch = await launchOver(guest, origin);
  await end(guest);
  try {
    await writeDurably(files.launch, JSON.stringify(launch), 0o600);
    if (isArriving(origin.disk) || isArriving(origin.memory)) await writeFile(files.arriving, "");
    const [nic, below] = await together([
      openNic(guest, launch, around),
      layerNodes(origin.disk),
      openMemoryView(guest, origin.memory, launch.memoryMib),
      createUnchecked(files.disk, { below: origin.disk.file, sizeMib: guest.spec.resources.diskMib, clusterBytes: 65536 }),
      copyFile(origin.seed, files.originSeed),
    ]);
    const memory = { path: files.memoryView, shared: false };
    await launchFromState(wanted, launch, { around, nic, below, memory });
  } catch (error) {
    await end(guest);
    await rm(files.disk, { force: true });
    await rm(files.launch, { force: true });
    throw error;
  }
}

/** The memory lies in a plain file that is whole when the guest is frozen. */
export async function startForFreeze(wanted: Omit<Wanted, "origin"> & { origin: Origin | undefined }): Promise<void> {
  const { guest, origin, around, progress } = wanted;
  const files = guestFiles(guest);
  await mustExist(guest);
  if (await isLive(guest)) return continueGuest(guest);
  await end(guest);
  for (const path of [files.frozenMemory, files.frozenState]) await rm(path, { force: true });
  const memory = { path: files.frozenMemory, shared: true };
  try {
    if (origin === undefined) {
      const pinned = await machine(guest.spec.resources);
      const launch: Launch = { ...launchOf(guest, pinned.accelerator), pinned: { type: pinned.type, cpu: pinned.cpu.model } };
      await writeDurably(files.launch, JSON.stringify(launch), 0o600);
      return await launchProcess(guest, launch, { around, memory, typed: true, nic: await openNic(guest, launch, around) });
    }
    const launch = await launchOver(guest, origin);
    await writeDurably(files.launch, JSON.stringify(launch), 0o600);
    await rm(files.disk, { force: true });
    const [nic, below] = await together([
      openNic(guest, launch, around),
      layerNodes(origin.disk),
      copyMemory(origin.memory.file, files.frozenMemory, progress.signal),
      createUnchecked(files.disk, { below: origin.disk.file, sizeMib: guest.spec.resources.diskMib, clusterBytes: 65536 }),
      copyFile(origin.seed, files.originSeed),
    ]);
    await launchFromState({ guest, origin, around, progress }, launch, { around, nic, below, memory, typed: true });
  } catch (error) {
    await end(guest);
    throw error;
  }
}

/** The serial console of a guest that `startForFreeze` started. */
export async function openConsole(guest: Guest): Promise<Duplex> {
  const console = connect(guestFiles(guest).consoleSocket);
  try {
    await once(console, "connect");
    return console;
  } catch (cause) {
    console.destroy();
    throw new CloudletError("UNREACHABLE", `the serial console of guest ${guest.name} does not answer`, { cause });
  }
}

/** Nothing depends on what serves the layers any more once this has ended. */
export async function settle(guest: Guest): Promise<void> {
  const files = guestFiles(guest);
  if (!(await exists(files.arriving))) return;
  if (await isLive(guest)) {
    for (const socket of [files.viewMonitor, files.qmp]) {
      await withQmp(guest, socket, async (qmp) => {
        for (const { command, args } of settleCommands(await blockNodeNames(qmp))) await qmp.execute(command, args);
      });
    }
  }
  await rm(files.arriving, { force: true });
}

/** A QEMU that waits for a page answers nothing, and is as still as one that is held. */
export async function hold(guest: Guest, held: boolean): Promise<void> {
  const files = guestFiles(guest);
  if (!(await isLive(guest))) return;
  if (held) await writeFile(files.held, "");
  else await rm(files.held, { force: true });
  const deadlines = { greeting: holdMillis, qmp_capabilities: holdMillis, stop: holdMillis };
  try {
    const qmp = await connectQmp(files.qmp, { guest: guest.name, deadlines });
    await (held ? pause(qmp) : letRun(qmp)).finally(() => qmp.close());
  } catch (error) {
    if (!held || codeOf(error) !== "UNREACHABLE") throw error;
  }
}

const holdMillis = 3_000;
const loadMillis = 120_000;

/** Whether it was resumed already. What has run is never made anew: its disk has moved on. */
async function continueResumed(guest: Guest): Promise<boolean> {
  const files = guestFiles(guest);
  const launch = await readJson(files.launch, launchSchema);
  if (launch?.ran === true && (await isLive(guest))) {
    await continueGuest(guest);
    return true;
  }
  if (!(await exists(files.disk)) || (launch?.inside !== undefined && launch.ran !== true)) return false;
  throw new CloudletError("REFUSED", `guest ${guest.name} has a disk of its own and cannot be resumed from its overlay again`, {
    fix: "start it: it boots from its disk; or remove it first",
  });
}

async function launchOver(guest: Guest, origin: Origin): Promise<Launch> {
  const { accelerator } = await probeAcceleration();
  const { type, cpu, cores, memoryMib } = origin.machine;
  if (accelerator !== origin.machine.accelerator)
    throw new CloudletError(
      "REFUSED",
      `the overlay of guest ${guest.name} was made with accelerator ${origin.machine.accelerator} and cannot resume with ${accelerator}`,
      { fix: "let it boot from its disk" },
    );
  return { ...launchOf(guest, accelerator), volumes: [], cores, memoryMib, pinned: { type, cpu: cpu.model }, inside: origin.network };
}

async function launchFromState({ guest, origin, progress }: Wanted, launch: Launch, options: LaunchOptions): Promise<void> {
  const files = guestFiles(guest);
  const state = await open(origin.state, "r");
  try {
    await launchProcess(guest, launch, { ...options, incoming: "defer", descriptors: [state.fd] });
  } finally {
    await state.close();
  }
  await withQmp(guest, files.qmp, async (qmp) => {
    await loadState(guest, qmp, progress.signal);
    await writeDurably(files.launch, JSON.stringify({ ...launch, ran: true }), 0o600);
    await letRun(qmp);
  });
  if (options.nic.namespace !== undefined) await answerDhcp(guest, origin.network);
  correctClock(guest, options.around);
}

async function loadState(guest: Guest, qmp: Qmp, signal: AbortSignal): Promise<void> {
  try {
    await leaveOutShared(qmp, true);
    await loadFrom(qmp, "fd:3");
    await migrationEnded(qmp, `loading the device state of ${guest.name}`, { signal, timeoutMillis: loadMillis });
    await leaveOutShared(qmp, false);
  } catch (cause) {
    if (signal.aborted) throw cause;
    const output = await processOutput(guest.directory);
    throw new CloudletError("FAILED", `guest ${guest.name} cannot be resumed from its overlay: ${output || String(cause)}`, {
      cause,
      fix: "build the overlay again on a node like this one, or let the cloudlet boot from its disk",
    });
  }
}

/** Like Promise.all, but nothing is still under way when it fails. */
async function together<T extends unknown[]>(works: readonly [...{ [K in keyof T]: Promise<T[K]> }]): Promise<T> {
  await Promise.allSettled(works);
  return Promise.all(works);
}
