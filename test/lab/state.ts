import { existsSync, readFileSync, readdirSync, rmSync, renameSync, writeFileSync, mkdirSync, rmdirSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CloudletError } from "../../provider/core/errors.ts";
import { run, tryRun } from "./run.ts";

/** Where labs keep what is theirs; a real directory, as roots and pools are made in it. */
export const labsDirectory = "/var/lib/cloudlet-lab";

const processSchema = z.object({ pid: z.int(), start: z.string() });
export type Process = z.infer<typeof processSchema>;

const stateSchema = z.object({
  name: z.string(),
  subnet: z.int(),
  /** The process that will close the lab; absent when the lab shall outlive whoever made it. */
  owner: processSchema.optional(),
  hosts: z.array(
    z.object({ name: z.string(), index: z.int(), lxd: z.boolean(), bare: z.boolean(), systemd: z.boolean(), password: z.string() }),
  ),
  processes: z.record(z.string(), z.array(processSchema)),
});
export type LabState = z.infer<typeof stateSchema>;
export type HostState = LabState["hosts"][number];

export function labDirectory(name: string): string {
  return join(labsDirectory, name);
}

export function prefixOf(name: string): string {
  return `clab-${name}`;
}

export function readState(name: string): LabState | undefined {
  const file = join(labDirectory(name), "state.json");
  return existsSync(file) ? stateSchema.parse(JSON.parse(readFileSync(file, "utf8"))) : undefined;
}

export function writeState(state: LabState): void {
  const file = join(labDirectory(state.name), "state.json");
  writeFileSync(`${file}.new`, JSON.stringify(state, null, 2), { flush: true });
  renameSync(`${file}.new`, file);
}

/** The process as it is now; a pid alone may belong to somebody else later. */
export function identify(pid: number): Process | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    const start = fields[19];
    // a zombie holds nothing any more
    return start === undefined || fields[0] === "Z" ? undefined : { pid, start };
  } catch {
    return undefined;
  }
}

export function isAlive(process: Process): boolean {
  return identify(process.pid)?.start === process.start;
}

/** Kills and waits until the kernel has taken the processes down. */
export async function killProcesses(processes: readonly Process[]): Promise<void> {
  for (const process of processes) if (isAlive(process)) signal(process.pid);
  const deadline = Date.now() + 10_000;
  while (processes.some(isAlive)) {
    if (Date.now() > deadline)
      throw new CloudletError("TIMEOUT", `processes ${processes.map((p) => p.pid).join(", ")} of a lab do not end`);
    await sleep(10);
  }
}

/** The cgroup directories in which a lab's processes run, one for each hierarchy. */
export function cgroupRoots(): string[] {
  return readFileSync("/proc/self/mounts", "utf8")
    .split("\n")
    .map((line) => line.split(" "))
    .filter(([, , type]) => type === "cgroup" || type === "cgroup2")
    .map(([, at]) => at ?? "")
    .filter((at) => at.startsWith("/sys/fs/cgroup"));
}

/** Removes everything that bears the lab's name, whatever state a killed run left it in. */
export async function sweep(name: string): Promise<void> {
  const state = readState(name);
  await killProcesses(Object.values(state?.processes ?? {}).flat());
  for (const root of cgroupRoots()) await removeCgroup(join(root, prefixOf(name)));
  const namespaces = existsSync("/run/netns") ? readdirSync("/run/netns") : [];
  for (const namespace of namespaces.filter((it) => it.startsWith(`${prefixOf(name)}-`))) await run(["ip", "netns", "delete", namespace]);
  if (existsSync(`/sys/class/net/${prefixOf(name)}`)) await tryRun(["ip", "link", "delete", prefixOf(name)]);
  rmSync(labDirectory(name), { recursive: true, force: true });
  if (existsSync(labsDirectory) && readdirSync(labsDirectory).length === 0) rmdirSync(labsDirectory);
}

export function makeCgroup(path: string): void {
  mkdirSync(path, { recursive: true });
  // a cpuset without processors and memory takes no process
  for (const file of ["cpuset.cpus", "cpuset.mems"]) copyDownwards(path, file);
}

function copyDownwards(path: string, file: string): void {
  const [parent, own] = [join(path, "..", file), join(path, file)];
  if (!existsSync(own) || !existsSync(parent) || readFileSync(own, "utf8").trim() !== "") return;
  if (readFileSync(parent, "utf8").trim() === "") copyDownwards(join(path, ".."), file);
  writeFileSync(own, readFileSync(parent, "utf8").trim());
}

export async function removeCgroup(path: string): Promise<void> {
  if (!existsSync(path)) return;
  for (const entry of readdirSync(path, { withFileTypes: true })) if (entry.isDirectory()) await removeCgroup(join(path, entry.name));
  const deadline = Date.now() + 10_000;
  for (;;) {
    const procs = existsSync(path) ? readFileSync(join(path, "cgroup.procs"), "utf8").split("\n").filter(Boolean).map(Number) : [];
    await killProcesses(procs.map(identify).filter((it) => it !== undefined));
    try {
      rmdirSync(path);
      return;
    } catch (cause) {
      if (!existsSync(path)) return;
      if (Date.now() > deadline) throw new CloudletError("TIMEOUT", `cgroup ${path} does not empty`, { cause });
      await sleep(20);
    }
  }
}

function signal(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // ended by itself
  }
}
