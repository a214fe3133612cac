import { spawn } from "node:child_process";
import { mkdtemp, rm, stat, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";

export interface RawViewOptions {
  format: "qcow2" | "raw" | "vmdk" | "vhdx";
  /** Writes go into the image itself; without it the image is only read. */
  writable?: boolean;
  signal?: AbortSignal;
}

/** Shows an image, with everything that it stands on, as one raw file for as long as `work` lasts; nothing is copied. */
export async function withRawView<T>(file: string, options: RawViewOptions, work: (rawPath: string) => Promise<T>): Promise<T> {
  const view = await openRawView(file, options);
  try {
    return await work(view.path);
  } finally {
    await view.close();
  }
}

export interface RawView {
  path: string;
  close(): Promise<void>;
}

/** The same, until it is closed or this process ends. */
export async function openRawView(file: string, options: RawViewOptions): Promise<RawView> {
  const place = await mkdtemp("/run/cloudlet-view-");
  const view = join(place, "image.raw");
  await writeFile(view, "", { mode: 0o600 });
  const daemon = openDaemon(file, { ...options, view });
  const close = async (): Promise<void> => {
    await daemon.end();
    await unmount(view);
    await rm(place, { recursive: true, force: true });
  };
  try {
    await mounted({ file, view, daemon, signal: options.signal });
    return { path: view, close };
  } catch (error) {
    await close();
    throw error;
  }
}

/** Where a file is shown over another one, it lies on a device of its own. */
export async function isMounted(view: string): Promise<boolean> {
  return (await stat(view)).dev !== (await stat(dirname(view))).dev;
}

/** What a daemon that was killed leaves behind; a clean end unmounts by itself. */
export async function unmount(view: string): Promise<void> {
  // 32: not mounted
  await run(["umount", "--lazy", view], { okCodes: [0, 1, 32], timeoutMillis: 10_000 });
}

const openMillis = 30_000;

interface Daemon {
  /** undefined while it runs. */
  ended(): string | undefined;
  end(): Promise<void>;
}

function openDaemon(file: string, options: RawViewOptions & { view: string }): Daemon {
  const writable = options.writable === true;
  const node = { driver: options.format, "node-name": "image", "read-only": !writable, file: { driver: "file", filename: file } };
  const fuse = { type: "fuse", id: "view", "node-name": "image", mountpoint: options.view, writable };
  const argv = ["qemu-storage-daemon", "--blockdev", JSON.stringify(node), "--export", JSON.stringify(fuse)];
  // ends with the process that started it, so that a killed agent leaves no daemon behind
  const child = spawn("setpriv", ["--pdeathsig", "TERM", ...argv], { stdio: ["ignore", "ignore", "pipe"] });
  let ended: string | undefined;
  let output = "";
  child.stderr.on("data", (chunk: Buffer) => (output = `${output}${chunk.toString("utf8")}`.slice(-2000)));
  const exit = new Promise<void>((resolve) => {
    child.once("error", (error) => resolve(void (ended = error.message)));
    child.once("close", (code, signal) => resolve(void (ended = output.trim() || `it ended with ${String(code ?? signal)}`)));
  });
  return {
    ended: () => ended,
    async end() {
      child.kill("SIGTERM");
      const hard = setTimeout(() => child.kill("SIGKILL"), 10_000);
      await exit;
      clearTimeout(hard);
    },
  };
}

async function mounted(what: { file: string; view: string; daemon: Daemon; signal: AbortSignal | undefined }): Promise<void> {
  const deadline = Date.now() + openMillis;
  while (!(await isMounted(what.view))) {
    const ended = what.daemon.ended();
    if (ended !== undefined) throw new CloudletError("FAILED", `the image ${what.file} cannot be opened: ${ended}`);
    if (Date.now() > deadline)
      throw new CloudletError("TIMEOUT", `the image ${what.file} was not opened within ${String(openMillis / 1000)} s`);
    await delay(5, undefined, { signal: what.signal });
  }
}
