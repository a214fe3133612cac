import { spawn } from "node:child_process";
import { open, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { isMissing } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";

/** Starts a process that outlives this one: own session, output to a file, its identity in `qemu.pid` before it becomes QEMU. */
export async function spawnDetached(directory: string, argv: string[], cgroups: string[]): Promise<{ exited: () => number | undefined }> {
  const output = await open(join(directory, "qemu.log"), "w", 0o600);
  try {
    const child = spawn("/bin/sh", ["-c", entryScript, "sh", pidFile(directory), ...cgroups, "--", ...argv], {
      cwd: directory,
      detached: true,
      stdio: ["ignore", output.fd, output.fd],
    });
    let code: number | undefined;
    child.on("error", () => (code = 127));
    child.on("exit", (status, signal) => (code = status ?? (signal === null ? 1 : 128)));
    child.unref();
    return { exited: () => code };
  } finally {
    await output.close();
  }
}

/** The pid of the guest's process, if it is still the same process: pids are used again, start times within one boot are not. */
export async function livePid(directory: string): Promise<number | undefined> {
  const recorded = await readText(pidFile(directory));
  if (recorded === undefined) return undefined;
  const [stat = "", bootId = ""] = recorded.split("\n");
  const known = parseStat(stat);
  if (known === undefined || bootId !== (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim()) return undefined;
  const now = parseStat((await readText(`/proc/${String(known.pid)}/stat`)) ?? "");
  return now !== undefined && now.startTime === known.startTime && now.state !== "Z" && now.state !== "X" ? known.pid : undefined;
}

/** Waits until the process has gone; false = still there at the deadline. */
export async function waitGone(directory: string, timeoutMillis: number): Promise<boolean> {
  const deadline = Date.now() + timeoutMillis;
  while ((await livePid(directory)) !== undefined) {
    if (Date.now() > deadline) return false;
    await delay(20);
  }
  return true;
}

/** The last resort, for a QEMU that does not answer. */
export async function kill(directory: string, guest: string): Promise<void> {
  const pid = await livePid(directory);
  if (pid === undefined) return;
  process.kill(pid, "SIGKILL");
  if (!(await waitGone(directory, 10_000)))
    throw new CloudletError("FAILED", `the QEMU process ${String(pid)} of guest ${guest} does not end, not even when killed`);
}

export async function forgetProcess(directory: string): Promise<void> {
  await rm(pidFile(directory), { force: true });
}

/** What QEMU wrote about itself, for messages. */
export async function processOutput(directory: string): Promise<string> {
  return ((await readText(join(directory, "qemu.log"))) ?? "").trim().slice(-2000);
}

/** pid, state and start time of a `/proc/PID/stat` line; the command in it may hold spaces and parentheses. */
export function parseStat(line: string): { pid: number; state: string; startTime: string } | undefined {
  const match = /^(\d+) \(.*\) (.*)$/s.exec(line.trim());
  const fields = match?.[2]?.split(" ") ?? [];
  const [state, startTime] = [fields[0], fields[19]];
  return match === null || state === undefined || startTime === undefined ? undefined : { pid: Number(match[1]), state, startTime };
}

const entryScript = `umask 077
pidfile=$1
shift
while [ "$1" != -- ]; do
  echo $$ >"$1" || exit 125
  shift
done
shift
{ cat /proc/$$/stat /proc/sys/kernel/random/boot_id; } >"$pidfile.new" && mv "$pidfile.new" "$pidfile" && exec "$@"`;

function pidFile(directory: string): string {
  return join(directory, "qemu.pid");
}

async function readText(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    // ESRCH: the process ended between open and read
    if (isMissing(error) || (error instanceof Error && "code" in error && error.code === "ESRCH")) return undefined;
    throw error;
  }
}
