import { mkdir, mkdtemp, readdir, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import type { Readable } from "node:stream";
import { run } from "../../agent/process.ts";
import { exists } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Progress } from "../types.ts";
import { dumpTree } from "./extFilesystem.ts";
import { tarAndRemove, untar } from "./tarDirectory.ts";

/** A volume is a sparse raw file that holds an ext4 file system, without a partition table. */
export async function createVolume(hostPath: string, sizeMib: number, progress: Progress): Promise<void> {
  if (await exists(hostPath)) return;
  await format(hostPath, { sizeMib, contents: undefined, signal: progress.signal });
}

export async function readVolume(hostPath: string, progress: Progress): Promise<Readable> {
  if (!(await exists(hostPath))) throw new CloudletError("NOT_FOUND", `the volume ${hostPath} is not there`);
  const directory = await mkdtemp(`${hostPath}.read-`);
  try {
    await dumpTree(hostPath, ["/"], { directory, signal: progress.signal });
    await rm(`${directory}/lost+found`, { recursive: true, force: true });
    return tarAndRemove(directory, (await readdir(directory)).sort(), progress.signal);
  } catch (error) {
    await rm(directory, { recursive: true, force: true });
    throw error;
  }
}

/** Replaces the volume, all at once, by one with the tar's contents. */
export async function writeVolume(hostPath: string, sizeMib: number, source: { tar: Readable; progress: Progress }): Promise<void> {
  await mkdir(dirname(hostPath), { recursive: true });
  const contents = await mkdtemp(`${hostPath}.write-`);
  try {
    await untar(source.tar, contents, source.progress.signal);
    await format(hostPath, { sizeMib, contents, signal: source.progress.signal });
  } finally {
    await rm(contents, { recursive: true, force: true });
  }
}

async function format(hostPath: string, options: { sizeMib: number; contents: string | undefined; signal: AbortSignal }): Promise<void> {
  const temporary = `${hostPath}.new`;
  await rm(temporary, { force: true });
  const features = ["-E", "root_owner=0:0,lazy_itable_init=1,nodiscard", "-m", "0"];
  const contents = options.contents === undefined ? [] : ["-d", options.contents];
  await run(["mke2fs", "-q", "-F", "-t", "ext4", ...features, ...contents, temporary, `${String(options.sizeMib)}M`], {
    timeoutMillis: 300_000,
    signal: options.signal,
  });
  await run(["sync", temporary], { timeoutMillis: 120_000 });
  await rename(temporary, hostPath);
}
