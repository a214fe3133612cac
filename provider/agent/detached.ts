import { spawn } from "node:child_process";
import { open, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { CloudletError } from "../core/errors.ts";
import { isMissing } from "./durable.ts";

/** The program whose process a directory holds, where nothing else is said. */
const usual = "qemu";

/** Starts a process that outlives this one: own session, output to `NAME.log`, its identity in `NAME.pid` before it becomes the program; `descriptors` are its 3, 4, …. */
export async function spawnDetached(
  directory: string,
  argv: string[],
  options: { name?: string; cgroups?: string[]; descriptors?: number[] } = {},
): Promise<{ exited: () => number | undefined }> {
  const { name = usual, cgroups = [], descriptors = [] } = options;
  const output = await open(join(directory, `${name}.log`), "w", 0o600);
  try {
    const child = spawn("/bin/sh", ["-c", entryScript, "sh", pidFile(directory, name), ...cgroups, "--", ...argv], {
      cwd: directory,
      detached: true,
      stdio: ["ignore", output.fd, output.fd, ...descriptors],
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

/** The pid of the process, if it is still the same process: pids are used again, start times within one boot are not. */
export async function livePid(directory: string, name = usual): Promise<number | undefined> {
  const recorded = await readText(pidFile(directory, name));
  if (recorded === undefined) return undefined;
  const [stat = "", bootId = ""] = recorded.split("\n");
  const known = parseStat(stat);
  if (known === undefined || bootId !== (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim()) return undefined;
  const now = parseStat((await readText(`/proc/${String(known.pid)}/stat`)) ?? "");
  return now !== undefined && now.startTime === known.startTime && now.state !== "Z" && now.state !== "X" ? known.pid : undefined;
}

/** Waits until the process has gone; false = still there at the deadline. */
export async function waitGone(directory: string, timeoutMillis: number, name = usual): Promise<boolean> {
  const deadline = Date.now() + timeoutMillis;
  while ((await livePid(directory, name)) !== undefined) {
    if (Date.now() > deadline) return false;
    await delay(20);
  }
  return true;
}

/** The last resort, for a program that does not answer. `owner` is for the message: whose process it is. */
export async function kill(directory: string, owner: string, name = usual): Promise<void> {
  const pid = await livePid(directory, name);
  if (pid === undefined) return;
  process.kill(pid, "SIGKILL");
  if (!(await waitGone(directory, 10_000, name)))
    throw new CloudletError("FAILED", `the ${name} process ${String(pid)} of ${owner} does not end, not even when killed`);
}

export async function forgetProcess(directory: string, name = usual): Promise<void> {
  await rm(pidFile(directory, name), { force: true });
}

/** What the program wrote about itself, for messages. */
export async function processOutput(directory: string, name = usual): Promise<string> {
  return ((await readText(join(directory, `${name}.log`))) ?? "").trim().slice(-2000);
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

function pidFile(directory: string, name: string): string {
  return join(directory, `${name}.pid`);
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
