import { rename, rm } from "node:fs/promises";
import { z } from "zod";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";

const infoSchema = z.object({
  format: z.string(),
  "virtual-size": z.int(),
  snapshots: z.array(z.object({ name: z.string(), "vm-state-size": z.int() })).default([]),
});

export interface DiskInfo {
  format: string;
  virtualBytes: number;
  snapshots: { name: string; ramBytes: number }[];
}

/** Also of a disk in use: what is read may then be a moment old. */
export async function diskInfo(path: string, format?: "qcow2"): Promise<DiskInfo> {
  const { stdout } = await run(
    ["qemu-img", "info", "--force-share", "--output=json", ...(format === undefined ? [] : ["-f", format]), path],
    { timeoutMillis: 30_000 },
  );
  const parsed = infoSchema.safeParse(JSON.parse(stdout));
  if (!parsed.success) throw new CloudletError("FAILED", `qemu-img said something unexpected about ${path}: ${parsed.error.message}`);
  return {
    format: parsed.data.format,
    virtualBytes: parsed.data["virtual-size"],
    snapshots: parsed.data.snapshots.map((snapshot) => ({ name: snapshot.name, ramBytes: snapshot["vm-state-size"] })),
  };
}

/** A new empty overlay over a base whose format is found out. */
export async function createOverlay(path: string, base: string, sizeMib: number): Promise<void> {
  const { format, virtualBytes } = await diskInfo(base);
  checkSize(sizeMib, virtualBytes);
  const temporary = `${path}.new`;
  await rm(temporary, { force: true });
  await run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", base, temporary, `${String(sizeMib)}M`], {
    timeoutMillis: 30_000,
  });
  await rename(temporary, path);
}

/** A new empty overlay over a qcow2 layer that is looked at by nobody here: it may still be arriving. */
export async function createUnchecked(path: string, shape: { below: string; sizeMib: number; clusterBytes: number }): Promise<void> {
  const options = ["-u", "-F", "qcow2", "-b", shape.below, "-o", `cluster_size=${String(shape.clusterBytes)}`];
  await run(["qemu-img", "create", "-q", "-f", "qcow2", ...options, path, `${String(shape.sizeMib)}M`], { timeoutMillis: 30_000 });
}

/** Grows a disk that is not in use. A smaller size is refused: it would cut data off. */
export async function growDisk(path: string, sizeMib: number): Promise<void> {
  const { virtualBytes } = await diskInfo(path, "qcow2");
  checkSize(sizeMib, virtualBytes);
  if (virtualBytes < sizeMib * 1024 ** 2)
    await run(["qemu-img", "resize", "-q", "-f", "qcow2", path, `${String(sizeMib)}M`], { timeoutMillis: 30_000 });
}

/** What `growDisk` will say about a disk that is in use now. */
export async function checkGrowth(path: string, sizeMib: number): Promise<void> {
  checkSize(sizeMib, (await diskInfo(path, "qcow2")).virtualBytes);
}

/** Points an overlay from another node at this node's copy of the same base. */
export async function rebaseOverlay(path: string, base: string): Promise<void> {
  const { format } = await diskInfo(base);
  await run(["qemu-img", "rebase", "-u", "-f", "qcow2", "-F", format, "-b", base, path], { timeoutMillis: 30_000 });
}

export async function snapshotOffline(path: string, action: "create" | "apply", tag: string): Promise<void> {
  await run(["qemu-img", "snapshot", "-q", action === "create" ? "-c" : "-a", tag, path], { timeoutMillis: 300_000 });
}

function checkSize(sizeMib: number, virtualBytes: number): void {
  if (sizeMib * 1024 ** 2 >= virtualBytes) return;
  const fix = `set resources.disk to at least ${String(Math.ceil(virtualBytes / 1024 ** 2))} MiB`;
  throw new CloudletError("INVALID", `a disk of ${String(sizeMib)} MiB is smaller than what it must hold (${String(virtualBytes)} bytes)`, {
    fix,
  });
}
