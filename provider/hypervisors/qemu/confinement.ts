import { mkdir, readFile, rmdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { exists } from "../../agent/durable.ts";
import { run } from "../../agent/process.ts";
import { sandboxRules } from "./commandLine.ts";

/** What of QEMU's own confinement works on this node. */
export interface Confinement {
  /** The unprivileged user, where it exists. */
  user?: { name: string; uid: number; gid: number };
  sandbox: boolean;
}

export async function probeConfinement(userName: string, log: (line: string) => void): Promise<Confinement> {
  const ids = await run(["getent", "passwd", userName], { okCodes: [0, 2] });
  const [, , uid, gid] = ids.stdout.split(":");
  const user = uid === undefined || gid === undefined ? undefined : { name: userName, uid: Number(uid), gid: Number(gid) };
  if (user === undefined) log(`there is no user ${userName}; guests run as root`);
  const sandbox = await sandboxWorks(user !== undefined);
  if (!sandbox) log("QEMU's system call filter does not work here; guests run without it");
  return user === undefined ? { sandbox } : { user, sandbox };
}

export interface Limits {
  memoryMib: number;
  cores: number;
}

/** Makes a cgroup of the guest's own, and returns the files a process writes its pid to in order to enter it; none where the node has no usable cgroups. */
export async function enterableCgroups(name: string, limits: Limits, log: (line: string) => void): Promise<string[]> {
  try {
    return (await unified()) ? await makeUnified(name, limits) : await makeLegacy(name, limits);
  } catch (error) {
    log(`guest ${name} runs without limits: ${error instanceof Error ? error.message : String(error)}`);
    return [];
  }
}

/** Takes so much of its processors away from a guest for a while; without effect where the node has no usable cgroups. */
export async function limitProcessor(name: string, { cores, percent }: { cores: number; percent: number }): Promise<void> {
  const quota = Math.max(1_000, Math.round((cores * period * (100 - percent)) / 100));
  const [file, text] = (await unified())
    ? [join(cgroups, "cloudlet", name, "cpu.max"), `${String(quota)} ${String(period)}`]
    : [join(cgroups, "cpu", "cloudlet", name, "cpu.cfs_quota_us"), String(quota)];
  if (await exists(file)) await writeFile(file, text);
}

/** Removes the guest's cgroups once their last process has gone. */
export async function removeCgroups(name: string): Promise<void> {
  const parents = [cgroups, ...Object.keys(legacyLimits({ memoryMib: 0, cores: 0 })).map((controller) => join(cgroups, controller))];
  for (const parent of parents) await removeWhenEmpty(join(parent, "cloudlet", name));
}

export async function removeCgroupParents(): Promise<void> {
  for (const parent of [cgroups, ...["memory", "cpu", "pids"].map((controller) => join(cgroups, controller))])
    await removeWhenEmpty(join(parent, "cloudlet"));
}

const cgroups = "/sys/fs/cgroup";
// QEMU itself, and with software emulation the translation cache of 256 MiB
const overheadMib = 512;
const taskLimit = "512";
const period = 100_000;

function unified(): Promise<boolean> {
  return exists(join(cgroups, "cgroup.controllers"));
}

async function makeUnified(name: string, limits: Limits): Promise<string[]> {
  const parent = join(cgroups, "cloudlet");
  await delegate(cgroups);
  await mkdir(parent, { recursive: true });
  await delegate(parent);
  const own = join(parent, name);
  await mkdir(own, { recursive: true });
  await writeFile(join(own, "memory.max"), String((limits.memoryMib + overheadMib) * 1024 ** 2));
  await writeFile(join(own, "cpu.max"), `${String(limits.cores * period)} ${String(period)}`);
  await writeFile(join(own, "pids.max"), taskLimit);
  return [join(own, "cgroup.procs")];
}

async function delegate(directory: string): Promise<void> {
  const control = join(directory, "cgroup.subtree_control");
  const on = (await readFile(control, "utf8")).trim().split(" ");
  const missing = ["memory", "cpu", "pids"].filter((controller) => !on.includes(controller));
  if (missing.length > 0) await writeFile(control, missing.map((controller) => `+${controller}`).join(" "));
}

function legacyLimits(limits: Limits): Record<string, Record<string, string>> {
  return {
    memory: { "memory.limit_in_bytes": String((limits.memoryMib + overheadMib) * 1024 ** 2) },
    cpu: { "cpu.cfs_period_us": String(period), "cpu.cfs_quota_us": String(limits.cores * period) },
    pids: { "pids.max": taskLimit },
  };
}

async function makeLegacy(name: string, limits: Limits): Promise<string[]> {
  const enterable: string[] = [];
  for (const [controller, files] of Object.entries(legacyLimits(limits))) {
    if (!(await exists(join(cgroups, controller, "cgroup.procs")))) continue;
    const own = join(cgroups, controller, "cloudlet", name);
    await mkdir(own, { recursive: true });
    for (const [file, value] of Object.entries(files)) await writeFile(join(own, file), value);
    enterable.push(join(own, "cgroup.procs"));
  }
  if (enterable.length === 0) throw new Error("this node has no usable cgroup hierarchy");
  return enterable;
}

async function removeWhenEmpty(directory: string): Promise<void> {
  for (let attempt = 0; attempt < 20 && (await exists(directory)); attempt++) {
    // a process that has just ended is counted for a moment longer
    if (
      await rmdir(directory).then(
        () => true,
        () => false,
      )
    )
      return;
    await delay(50);
  }
}

async function sandboxWorks(changesUser: boolean): Promise<boolean> {
  const stdin = '{"execute":"qmp_capabilities"}{"execute":"quit"}';
  const command = [
    "-nodefaults",
    "-no-user-config",
    "-display",
    "none",
    "-machine",
    "none",
    "-sandbox",
    sandboxRules(changesUser),
    "-qmp",
    "stdio",
  ];
  return run(["qemu-system-x86_64", ...command], { stdin, timeoutMillis: 10_000 }).then(
    () => true,
    () => false,
  );
}
