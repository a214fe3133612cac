import { readFileSync } from "node:fs";

/** The most memory that a process has ever had, in MiB. */
export function peakMib(pid: number): number {
  const peak = /VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${String(pid)}/status`, "utf8"));
  return Math.round(Number(peak?.[1]) / 1024);
}
