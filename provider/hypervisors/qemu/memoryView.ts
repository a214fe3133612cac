import { rm, stat, writeFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { forgetProcess, livePid, processOutput, spawnDetached, waitGone } from "../../agent/detached.ts";
import { run } from "../../agent/process.ts";
import { exists } from "../../agent/durable.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Guest, Layer } from "../types.ts";
import { createUnchecked } from "./disks.ts";
import { guestFiles } from "./guestFiles.ts";
import { isArriving, layerNodes } from "./layers.ts";
import { unmount } from "./rawView.ts";

/**
 * Shows an overlay's memory as one file that a guest can map privately, through a daemon of the guest's own that lives as
 * long as the guest. What the guest gives back (the balloon punches holes) becomes zeros in a qcow2 file of the guest, and
 * the layer stays as it is; 4 KiB clusters, because a smaller hole than a cluster would show the layer's bytes again.
 */
export async function openMemoryView(guest: Guest, layer: Layer, memoryMib: number): Promise<void> {
  const files = guestFiles(guest);
  await writeFile(files.memoryView, "", { mode: 0o600 });
  const [nodes] = await Promise.all([
    layerNodes(layer),
    createUnchecked(files.memory, { below: layer.file, sizeMib: memoryMib, clusterBytes: 4096 }),
  ]);
  const view = {
    driver: "qcow2",
    "node-name": "view",
    discard: "unmap",
    file: { driver: "file", filename: files.memory, discard: "unmap" },
    backing: nodes.at(-1)?.["node-name"],
  };
  const fuse = { type: "fuse", id: "view", "node-name": "view", mountpoint: files.memoryView, writable: true };
  const { exited } = await spawnDetached(
    guest.directory,
    [
      "qemu-storage-daemon",
      ...["--chardev", `socket,id=monitor,path=${files.viewMonitor},server=on,wait=off`, "--monitor", "chardev=monitor"],
      ...[...nodes, view].flatMap((node) => ["--blockdev", JSON.stringify(node)]),
      ...["--export", JSON.stringify(fuse)],
    ],
    { name: daemon },
  );
  await shown(guest, exited);
  if (isArriving(layer)) await readSinglePages(files.memoryView);
}

/**
 * Each page that is touched would bring 31 others with it, which lie in other chunks of the pack. Holds for whoever opens
 * the view from now on, except where the mapping is advised to use huge pages: there the kernel reads 4 MiB all the same.
 */
async function readSinglePages(view: string): Promise<void> {
  const { dev } = await stat(view);
  const [major, minor] = [(dev >> 8) & 0xfff, (dev & 0xff) | ((dev >> 12) & 0xfff00)];
  // only slower where the node does not let it be set
  await writeFile(`/sys/class/bdi/${String(major)}:${String(minor)}/read_ahead_kb`, "0").catch(() => undefined);
}

/** At once where nobody may wait for it any more: a guest's process that waits for its memory dies only with the daemon. */
export async function closeMemoryView(guest: Pick<Guest, "name" | "directory">, how: "gently" | "at once"): Promise<void> {
  const files = guestFiles(guest);
  const pid = await livePid(guest.directory, daemon);
  if (pid !== undefined) {
    process.kill(pid, how === "gently" ? "SIGTERM" : "SIGKILL");
    // one whose source is silent waits for it, even at its end
    if (how === "gently" && !(await waitGone(guest.directory, 2_000, daemon))) process.kill(pid, "SIGKILL");
    if (!(await waitGone(guest.directory, 10_000, daemon)))
      throw new CloudletError("FAILED", `the process ${String(pid)} that shows the memory of guest ${guest.name} does not end`);
  }
  await forgetProcess(guest.directory, daemon);
  if (!(await exists(files.memory))) return;
  await unmount(files.memoryView);
  for (const path of [files.memoryView, files.viewMonitor, files.memory]) await rm(path, { force: true });
}

/** The layer as a plain file, sparse, of the guest's own. */
export async function copyMemory(layer: string, target: string, signal: AbortSignal): Promise<void> {
  await run(["qemu-img", "convert", "-q", "-f", "qcow2", "-O", "raw", "-S", "4k", layer, target], { timeoutMillis: 300_000, signal });
}

const daemon = "view";
const openMillis = 20_000;

async function shown(guest: Guest, exited: () => number | undefined): Promise<void> {
  const { memoryView } = guestFiles(guest);
  const deadline = Date.now() + openMillis;
  // an empty file until the daemon has put its own over it
  while ((await stat(memoryView)).size === 0) {
    if (exited() !== undefined)
      throw new CloudletError(
        "FAILED",
        `the memory of guest ${guest.name} cannot be opened: ${await processOutput(guest.directory, daemon)}`,
      );
    if (Date.now() > deadline)
      throw new CloudletError("TIMEOUT", `the memory of guest ${guest.name} was not opened within ${String(openMillis / 1000)} s`);
    await delay(5);
  }
}
