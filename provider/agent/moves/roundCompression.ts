import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { CloudletError } from "../../core/errors.ts";

/** Pages that were on the disk before, or are in memory twice, are far apart in the stream. */
const windowLog = 27;
const sampleMillis = 100;
/** What takes little room must not wait for more: with threads of its own zstd gives out nothing before it has seen megabytes. */
const atOnce = "--single-thread";
/** Linux counts processor time in hundredths of a second. */
const tickMillis = 10;

/** One zstd stream over all that a round sends; its end flushes it. */
export function compressRound(records: AsyncIterable<Buffer>, level: number): { stream: Readable; processorMillis(): number } {
  const child = spawn("zstd", [`-${String(level)}`, `--long=${String(windowLog)}`, "-c", "-q", atOnce], {
    stdio: ["pipe", "pipe", "ignore"],
  });
  let millis = 0;
  const look = (): void => void (millis = Math.max(millis, processorMillisOf(child.pid)));
  const timer = setInterval(look, sampleMillis);
  const failed = (error: Error): void => void child.stdout.destroy(error);
  child.once("error", (error) => failed(new CloudletError("FAILED", `zstd could not be started: ${error.message}`)));
  child.stdout.on("end", look);
  child.once("close", (code, signal) => {
    clearInterval(timer);
    if (code !== 0) failed(new CloudletError("FAILED", `zstd ended with ${String(code ?? signal)}`));
  });
  pipeline(Readable.from(records), child.stdin).catch((error: unknown) => {
    child.kill();
    failed(error instanceof Error ? error : new Error(String(error)));
  });
  // where nobody reads on, nothing is compressed on
  child.stdout.once("close", () => child.kill());
  return { stream: child.stdout, processorMillis: () => millis };
}

function processorMillisOf(pid: number | undefined): number {
  try {
    const stat = readFileSync(`/proc/${String(pid)}/stat`, "utf8");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    return (Number(fields[11]) + Number(fields[12])) * tickMillis;
  } catch {
    // it has ended already
    return 0;
  }
}
