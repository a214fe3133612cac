import { readdirSync, readFileSync, readlinkSync } from "node:fs";

const intervalMillis = 200;

/** The most memory that a process has ever had, in MiB. */
export function peakMib(pid: number): number {
  const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${String(pid)}/status`, "utf8"));
  return Math.round(Number(peak?.[1]) / 1024);
}

/** Names a process that is to be watched; undefined = it is none of those. */
export type Naming = (process: { pid: number; command: string }) => string | undefined;

/** Watches all processes of this machine until told to stop; the most memory that one of each name ever had, in MiB. */
export function watchPeaks(name: Naming): { stop(): Map<string, number> } {
  const peaks = new Map<string, number>();
  const look = (): void => {
    for (const pid of readdirSync("/proc").map(Number)) {
      if (!(pid > 0)) continue;
      try {
        const command = readFileSync(`/proc/${String(pid)}/cmdline`, "utf8").replaceAll("\0", " ");
        const known = name({ pid, command });
        // a kernel thread, or one that has just ended, has none
        const peak = known === undefined ? NaN : peakMib(pid);
        if (known !== undefined && peak > 0) peaks.set(known, Math.max(peak, peaks.get(known) ?? 0));
      } catch {
        // it has ended meanwhile
      }
    }
  };
  const timer = setInterval(look, intervalMillis);
  return {
    stop() {
      clearInterval(timer);
      look();
      return peaks;
    },
  };
}

/** Whether a process was started by this one, or by one that was. */
export function isOurs(pid: number): boolean {
  for (let at = pid; at > 1;) {
    if (at === process.pid) return true;
    at = Number(/^PPid:\s+(\d+)$/m.exec(readFileSync(`/proc/${String(at)}/status`, "utf8"))?.[1]);
  }
  return false;
}

/** The host's name where a process runs on a host of a lab. */
export function hostOf(pid: number, hosts: Record<string, { pids: readonly number[] }>): string | undefined {
  const space = readlinkSync(`/proc/${String(pid)}/ns/pid`);
  return Object.entries(hosts).find(([, { pids }]) => readlinkSync(`/proc/${String(pids[0])}/ns/pid`) === space)?.[0];
}
