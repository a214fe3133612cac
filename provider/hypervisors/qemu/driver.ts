import { open, readdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { isMissing, readJson } from "../../agent/durable.ts";
import { guestUser } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Driver, Guest, Progress } from "../types.ts";
import { probeAcceleration } from "./acceleration.ts";
import { probeConfinement, removeCgroupParents } from "./confinement.ts";
import { exportParts, importParts, restore, snapshot } from "./copies.ts";
import { checkGrowth, createOverlay, growDisk } from "./disks.ts";
import { guestAgent } from "./guestAgent.ts";
import { guestFiles, launchSchema } from "./guestFiles.ts";
import { end, observe, settingsOf, start, stop, suspend } from "./lifecycle.ts";
import type { Surroundings } from "./launch.ts";
import { createLive } from "./live/live.ts";
import { openProgram } from "./program.ts";
import { ensureSeed } from "./seed.ts";
import { freeze } from "./freeze.ts";
import { exportState, importState } from "./state.ts";
import { hold, machine, makeOver, openConsole, resume, settle, startForFreeze } from "./synthesis.ts";
import { createVolume, readVolume, writeVolume } from "./volumes.ts";

export interface QemuDriverOptions {
  /** The unprivileged user that guests run as. Default: the protocol's guest user. */
  user?: string;
  /** One line for the agent's log. */
  log?: (line: string) => void;
}

/** Guests as QEMU processes that live on without the agent; everything about a guest is in its directory. */
export function createQemuDriver(options: QemuDriverOptions = {}): Driver {
  const log = options.log ?? (() => undefined);
  let probed: Promise<Surroundings> | undefined;
  const surroundings = () => (probed ??= probeConfinement(options.user ?? guestUser, log).then((confinement) => ({ confinement, log })));

  const program = openProgram();

  return {
    kind: "kvm",
    async describe() {
      const { accelerator } = await probeAcceleration();
      return { ...(await program()), accelerator };
    },
    observe,
    ensure,
    start: async (guest, progress) => start(guest, await surroundings(), progress),
    stop: async (guest, progress) => stop(guest, await surroundings(), progress),
    suspend: async (guest, progress) => suspend(guest, await surroundings(), progress),
    remove,
    snapshot,
    restore: async (guest, name, progress) => restore(guest, name, { around: await surroundings(), progress }),
    exec,
    log: lastLines,
    exportParts: (guest) => exportParts(guest),
    importParts: (guest, directory) => importParts(guest, directory),
    exportState: async (guest, progress) => exportState(guest, await surroundings(), progress),
    importState,
    createVolume,
    readVolume,
    writeVolume: (hostPath, sizeMib, ...[tar, progress]) => writeVolume(hostPath, sizeMib, { tar, progress }),
    uninstall: removeCgroupParents,
    live: createLive(surroundings),
    synthesis: {
      machine,
      startForFreeze: async (guest, origin, progress) => startForFreeze({ guest, origin, around: await surroundings(), progress }),
      openConsole,
      freeze: async (guest, progress) => freeze(guest, await surroundings(), progress),
      resume: async (guest, origin, progress) => resume({ guest, origin, around: await surroundings(), progress }),
      makeOver,
      settle,
      hold,
    },
  };
}

async function ensure(guest: Guest, progress: Progress): Promise<{ restartNeeded: boolean }> {
  const files = guestFiles(guest);
  const state = await observe(guest);
  if (state === undefined) await createOverlay(files.disk, guest.basePath, guest.spec.resources.diskMib);
  else if (state === "stopped") await growDisk(files.disk, guest.spec.resources.diskMib);
  else await checkGrowth(files.disk, guest.spec.resources.diskMib);
  await ensureSeed(guest, progress.signal);
  if (state !== "running" && state !== "suspended") return { restartNeeded: false };
  const launch = await readJson(files.launch, launchSchema);
  return { restartNeeded: launch?.settings !== settingsOf(guest) };
}

async function remove(guest: Guest): Promise<void> {
  await end(guest);
  const names = await readdir(guest.directory).catch((error: unknown) => {
    if (isMissing(error)) return [];
    throw error;
  });
  // the record is the agent's
  for (const name of names.filter((candidate) => candidate !== "record.json"))
    await rm(join(guest.directory, name), { recursive: true, force: true });
}

async function exec(guest: Guest, command: string[], options: Parameters<Driver["exec"]>[2]) {
  const state = await observe(guest);
  if (state === undefined) throw new CloudletError("NOT_FOUND", `guest ${guest.name} is not there`);
  if (state !== "running")
    throw new CloudletError("REFUSED", `guest ${guest.name} is ${state} and cannot execute commands`, { fix: "start it first" });
  return guestAgent(guestFiles(guest).guestAgent, guest.name).exec(command, options);
}

const tailBytes = 256 * 1024;

async function lastLines(guest: Guest, lines: number): Promise<string> {
  const handle = await open(guestFiles(guest).console, "r").catch((error: unknown) => {
    if (isMissing(error)) return undefined;
    throw error;
  });
  if (handle === undefined) return "";
  try {
    const { size } = await handle.stat();
    const from = Math.max(0, size - tailBytes);
    const bytes = Buffer.alloc(size - from);
    await handle.read(bytes, 0, bytes.length, from);
    const text = bytes.toString("utf8").replaceAll("\r", "").replace(/\n+$/, "");
    return text === "" ? "" : `${text.split("\n").slice(-lines).join("\n")}\n`;
  } finally {
    await handle.close();
  }
}
