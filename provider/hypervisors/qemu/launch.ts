import { chmod, chown, open, rename, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { livePid, processOutput, spawnDetached } from "../../agent/detached.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Guest } from "../types.ts";
import { commandLine } from "./commandLine.ts";
import type { BlockNode, Machine } from "./commandLine.ts";
import { enterableCgroups } from "./confinement.ts";
import type { Confinement } from "./confinement.ts";
import { guestFiles } from "./guestFiles.ts";
import type { Launch } from "./guestFiles.ts";
import { enterNamespace, ensureOwnNetwork } from "./ownNetwork.ts";
import { connectQmp } from "./qmp.ts";
import type { Qmp } from "./qmp.ts";
import { queryStatus } from "./qmpCommands.ts";
import { volumeSerial } from "./seed.ts";
import { withoutHugePages } from "./singlePages.ts";
import { ensureTap } from "./tap.ts";
import type { Nic } from "./tap.ts";

export interface Surroundings {
  confinement: Confinement;
  log(line: string): void;
}

export interface LaunchOptions {
  around: Surroundings;
  nic: Nic;
  memory?: Machine["memory"];
  /** Block nodes that the guest's own disk stands on. */
  below?: BlockNode[];
  /** `unix:PATH` or `defer`. */
  incoming?: string | undefined;
  /** Files that the process inherits as 3, 4, …. */
  descriptors?: number[];
  /** Its console can be typed to. */
  typed?: boolean;
}

/** Starts the guest's process and returns once its monitor answers. The guest must have no process. */
export async function launchProcess(guest: Guest, launch: Launch, options: LaunchOptions): Promise<void> {
  const { around, nic } = options;
  const files = guestFiles(guest);
  await rotateConsole(files.console);
  const volumes = guest.volumes.filter(({ id }) => launch.volumes?.includes(id) ?? true);
  const { user } = around.confinement;
  for (const path of [files.disk, files.console, ...volumes.map((volume) => volume.hostPath)]) {
    if (user !== undefined) await chown(path, user.uid, user.gid);
    await chmod(path, 0o600);
  }
  const argv = commandLine({
    ...{ name: guest.name, accelerator: launch.accelerator, cores: launch.cores, memoryMib: launch.memoryMib },
    ...{ disk: files.disk, below: options.below, memory: options.memory, nic, console: files.console },
    seed: launch.inside === undefined ? files.seed : files.originSeed,
    volumes: volumes.map((volume) => ({ path: volume.hostPath, serial: volumeSerial(volume.id) })),
    sockets: { qmp: files.qmp, status: files.status, guestAgent: files.guestAgent },
    ...(options.typed === true && { consoleSocket: files.consoleSocket }),
    user: user?.name,
    sandbox: around.confinement.sandbox,
    pinned: launch.pinned,
    incoming: options.incoming,
  });
  const program = options.memory?.shared === false ? withoutHugePages(argv) : argv;
  const { exited } = await spawnDetached(guest.directory, nic.namespace === undefined ? program : enterNamespace(nic.namespace, program), {
    cgroups: await enterableCgroups(guest.name, launch, around.log),
    descriptors: options.descriptors ?? [],
  });
  await monitorAnswers(guest, exited);
}

/** The guest's network device: in a network of its own where the guest believes to be somebody else. */
export async function openNic(guest: Guest, launch: Launch, { confinement }: Surroundings): Promise<Nic> {
  const { inside } = launch;
  const user = confinement.user?.name;
  if (inside !== undefined && inside.address !== guest.network.address) return ensureOwnNetwork(guest, inside, user);
  return { tap: await ensureTap(guest.name, guest.network.bridge, user), mac: inside?.mac ?? guest.network.mac };
}

export async function isLive(guest: Guest): Promise<boolean> {
  return (await livePid(guest.directory)) !== undefined;
}

export async function withQmp<T>(guest: Guest, socketPath: string, work: (qmp: Qmp) => Promise<T>): Promise<T> {
  const qmp = await connectQmp(socketPath, { guest: guest.name });
  try {
    return await work(qmp);
  } finally {
    qmp.close();
  }
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
    await delay(5);
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
