import { spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import path from "node:path";
import type { Progress, SealInput, Sealed } from "../../provider/synthesis/sealTypes.ts";

export const mib = 1024 * 1024;
export const blockBytes = 4096;
export const hasQemuImg = spawnSync("qemu-img", ["--version"]).status === 0;
export const progress: Progress = { signal: new AbortController().signal, status: () => undefined };

/** Runs qemu-img; its words where it fails. */
export function qemuImg(...args: string[]): string {
  const { status, stdout, stderr } = spawnSync("qemu-img", args, { encoding: "utf8" });
  return status === 0 ? stdout : `qemu-img ${args.join(" ")} failed: ${stdout}${stderr}`;
}

/** A guest's disk and memory before and after an application was put into it. */
export interface World {
  directory: string;
  input: SealInput;
  disk: Buffer;
  memory: Buffer;
}

/** Disk and memory of a few MiB with everything that an overlay treats in its own way: changed, zeroed, repeated and untouched blocks. */
export async function makeWorld(directory: string): Promise<World> {
  await mkdir(directory, { recursive: true });
  const base = Buffer.concat([randomBytes(2 * mib), Buffer.alloc(2 * mib, "base"), randomBytes(mib)]);
  const disk = Buffer.alloc(8 * mib);
  base.copy(disk);
  disk.fill(0, 3 * blockBytes, 40 * blockBytes);
  const unique = randomBytes(3 * mib);
  unique.copy(disk, 100 * blockBytes);
  Buffer.alloc(mib, "some text of an application; ").copy(disk, 6 * mib);
  const memory = Buffer.alloc(6 * mib);
  // the same blocks as on the disk, and one that is there many times
  unique.copy(memory, 17 * blockBytes, mib);
  for (let block = 900; block < 1000; block++) memory.fill("again", block * blockBytes, (block + 1) * blockBytes);
  const file = async (name: string, content: Buffer): Promise<string> => {
    await writeFile(path.join(directory, name), content);
    return path.join(directory, name);
  };
  const input: SealInput = {
    directory: path.join(directory, "sealed"),
    kind: "kvm",
    base: "0".repeat(64),
    diskMib: disk.length / mib,
    disk: { current: await file("disk.raw", disk), below: await file("base.raw", base), virtualBytes: disk.length },
    memory: { current: await file("memory.raw", memory), virtualBytes: memory.length },
    files: [
      { name: "state", path: await file("state", randomBytes(300_000)) },
      { name: "seed", path: await file("seed", Buffer.alloc(5000, "seed")) },
    ],
  };
  return { directory, input, disk, memory };
}

/** What `materialise` and ArrivingLayer need to make a layer from what was sealed. */
export function layerOptions(world: World, sealed: Sealed, directory = path.join(world.directory, "layer")) {
  const [manifest = "", index = "", pack = ""] = sealed.blobs.map((blob) => blob.path);
  const below = { disk: { file: path.join(world.directory, "base.raw"), format: "raw" } };
  return { digest: sealed.digest, manifest, index, pack, directory, below };
}

export async function chunkBytes(sealed: Sealed, chunk: number): Promise<Buffer> {
  const { offset = 0, bytes = 0 } = sealed.manifest.pack.chunks[chunk] ?? {};
  return (await readFile(sealed.blobs[2]?.path ?? "")).subarray(offset, offset + bytes);
}
