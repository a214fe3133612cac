import { setTimeout as delay } from "node:timers/promises";
import { exists, readJson } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Frozen, Guest, Progress } from "../types.ts";
import { guestAgent } from "./guestAgent.ts";
import type { GuestAgent } from "./guestAgent.ts";
import { guestFiles, launchSchema } from "./guestFiles.ts";
import { isLive, withQmp } from "./launch.ts";
import type { Surroundings } from "./launch.ts";
import { end } from "./lifecycle.ts";
import type { Qmp } from "./qmp.ts";
import { balloonBytes, leaveOutShared, pause, setBalloon } from "./qmpCommands.ts";
import { saveStream } from "./suspend.ts";
import { machine } from "./synthesis.ts";

/** Stops a guest that `startForFreeze` started at one instant: memory, device state and disk belong together. Run again, it says the same. */
export async function freeze(guest: Guest, around: Surroundings, progress: Progress): Promise<Frozen> {
  const files = guestFiles(guest);
  const launch = await readJson(files.launch, launchSchema);
  if (launch?.pinned === undefined || !(await exists(files.frozenMemory)))
    throw new CloudletError("REFUSED", `guest ${guest.name} was not started so that it can be frozen`);
  if (await isLive(guest)) {
    await withQmp(guest, files.qmp, async (qmp) => {
      await giveBack(guest, qmp, progress);
      progress.status(`freezing ${guest.name}`);
      await pause(qmp);
      // not only device state: the firmware's memory is nowhere else, and a guest that restarts itself needs it
      await leaveOutShared(qmp, true);
      const { user } = around.confinement;
      await saveStream(qmp, { path: files.frozenState, compressed: false }, { user, signal: progress.signal });
    });
  }
  await end(guest);
  if (!(await exists(files.frozenState)))
    throw new CloudletError("FAILED", `guest ${guest.name} ended before it was frozen`, { fix: "build the overlay again" });
  const seed = launch.inside === undefined ? files.seed : files.originSeed;
  const { cores, memoryMib } = launch;
  return { disk: files.disk, memory: files.frozenMemory, state: files.frozenState, seed, machine: await machine({ cores, memoryMib }) };
}

/** Freed blocks go back by trimming, free pages through the balloon, page by page; only a guest with an agent can be asked. */
async function giveBack(guest: Guest, qmp: Qmp, progress: Progress): Promise<void> {
  const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
  if (!(await agent.ping(1_000))) return;
  progress.status(`${guest.name} gives back what it does not need`);
  const free = await trim(agent, progress);
  const all = guest.spec.resources.memoryMib * 1024 ** 2;
  const kept = reserveBytes + all / 32;
  if (free === undefined || free <= kept) return;
  await setBalloon(qmp, all - (free - kept));
  await balloonStands(qmp, all - (free - kept), progress.signal);
  await setBalloon(qmp, all);
  await balloonStands(qmp, all, progress.signal);
}

// what a guest needs at hand while the balloon is full
const reserveBytes = 8 * 1024 ** 2;
const balloonMillis = 30_000;
const patienceMillis = 1_500;

/** Bytes of memory that are free afterwards. */
async function trim(agent: GuestAgent, progress: Progress): Promise<number | undefined> {
  const script = "sync; fstrim -a 2>/dev/null || fstrim / 2>/dev/null; echo 3 >/proc/sys/vm/drop_caches; cat /proc/meminfo";
  const { stdout } = await agent
    .exec(["sh", "-c", script], { timeoutMillis: 60_000, signal: progress.signal })
    .catch(() => ({ stdout: "" }));
  const free = /^MemFree: +(\d+) kB$/m.exec(stdout)?.[1];
  return free === undefined ? undefined : Number(free) * 1024;
}

/** Until the balloon has the size, or a guest that cannot get there has given up, or there is no such driver in it. */
async function balloonStands(qmp: Qmp, bytes: number, signal: AbortSignal): Promise<void> {
  const end = Date.now() + balloonMillis;
  let [last, since] = [await balloonBytes(qmp), Date.now()];
  while (Math.abs(last - bytes) > 1024 ** 2 && Date.now() < end && Date.now() - since < patienceMillis) {
    await delay(50, undefined, { signal });
    const now = await balloonBytes(qmp);
    if (now !== last) [last, since] = [now, Date.now()];
  }
}
