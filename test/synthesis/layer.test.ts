import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { ArrivingLayer } from "../../provider/synthesis/arrivingLayer.ts";
import { imageDigest, verifyImages } from "../../provider/synthesis/imageDigest.ts";
import { layerFiles } from "../../provider/synthesis/layerFiles.ts";
import { materialise } from "../../provider/synthesis/materialise.ts";
import { reorder } from "../../provider/synthesis/reorder.ts";
import { seal } from "../../provider/synthesis/seal.ts";
import { type World, chunkBytes, hasQemuImg, layerOptions, makeWorld, mib, progress, qemuImg } from "./makeImages.ts";

// each of them starts a dozen programs, which takes long on a busy machine
vi.setConfig({ testTimeout: 60_000 });

let world: World;
let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "layer-"));
  world = await makeWorld(directory);
});
afterEach(async () => rm(directory, { recursive: true }));

it("an image's digest counts what is missing at its end as zeros", async () => {
  const short = path.join(directory, "short");
  const virtualBytes = 8 * mib + 4096;
  await writeFile(short, world.disk);
  await writeFile(`${short}.long`, Buffer.concat([world.disk, Buffer.alloc(4096)]));
  expect(await imageDigest(short, { virtualBytes })).toBe(await imageDigest(`${short}.long`, { virtualBytes }));
});

it("cancelled work is not begun", async () => {
  const cancelled = { ...progress, signal: AbortSignal.abort() };
  await expect(seal(world.input, cancelled)).rejects.toThrow();
  expect(existsSync(world.input.directory)).toBe(false);
  const sealed = await seal(world.input, progress);
  await expect(materialise(layerOptions(world, sealed), cancelled)).rejects.toThrow();
  expect(existsSync(path.join(directory, "layer"))).toBe(false);
});

describe("sealing", () => {
  it("gives the same overlay for the same images", async () => {
    const first = await seal(world.input, progress);
    await rm(world.input.directory, { recursive: true });
    expect((await seal(world.input, progress)).digest).toBe(first.digest);
  });

  it("leaves out what is not changed, what is there twice, and zeros", async () => {
    const { manifest } = await seal(world.input, progress);
    const raw = manifest.pack.chunks.reduce((sum, { rawBytes }) => sum + rawBytes, 0);
    // three MiB that both images have, a block of text per 4 KiB phase, one block that is there a hundred times, the files
    expect(manifest.memory?.blocks).toBe(2 * 256 + 100);
    expect(raw).toBeLessThan(3 * mib + 29 * 4096 + 4096 + 305_000 + 4096);
    expect(manifest.disk?.digest).toBe(await imageDigest(world.input.disk?.current ?? "", { virtualBytes: 8 * mib }));
  });

  it("puts the files first, then what is touched, in the order of the touch", async () => {
    const touched = [500, 17, 3, 20].map((block) => ({ image: "memory" as const, block }));
    const sealed = await seal({ ...world.input, touched }, progress);
    const { pack, files } = sealed.manifest;
    expect(pack.touched).toBe(3);
    expect(files.map(({ chunks }) => chunks)).toEqual([[0], [1]]);
    const layer = await ArrivingLayer.open(layerOptions(world, sealed));
    await layer.accept(2, await chunkBytes(sealed, 2));
    const start = layer.fileBytes("memory") - dataBytes(layer);
    const blocks = [0, 1, 2].map((slot) => layer.blockOfFileOffset("memory", start + slot * 4096));
    expect(blocks).toEqual([500, 17, 20]);
    expect(await layer.read("memory", start, 4096)).toEqual(world.memory.subarray(500 * 4096, 501 * 4096));
    expect(layer.chunkOfFileOffset("memory", start)).toBe(2);
    expect(layer.chunkOfFileOffset("memory", start + 3 * 4096)).toBe(3);
    expect(layer.chunkOfFileOffset("memory", start - 1)).toBeUndefined();
    await layer.close();
  });

  it("looks only where something may have changed, when that is known", async () => {
    const { disk, ...rest } = world.input;
    if (disk === undefined) throw new Error("the world has a disk");
    const { manifest } = await seal({ ...rest, disk: { ...disk, changed: [{ offset: 0, length: 8 * mib }] } }, progress);
    const narrow = { ...disk, changed: [{ offset: 6 * mib, length: mib }] };
    const some = await seal({ ...rest, directory: `${rest.directory}2`, disk: narrow }, progress);
    expect(some.manifest.disk?.blocks).toBeLessThan(manifest.disk?.blocks ?? 0);
    expect(some.manifest.disk?.digest).toBe(manifest.disk?.digest);
  });
});

it.skipIf(!hasQemuImg)("a sparse image is sealed like one that is written out (skipped where there is no qemu-img)", async () => {
  const sparse = path.join(directory, "sparse");
  qemuImg("convert", "-S", "4k", "-O", "raw", path.join(directory, "memory.raw"), sparse);
  const { memory, ...rest } = world.input;
  if (memory === undefined) throw new Error("the world has a memory");
  const one = await seal(world.input, progress);
  const other = await seal({ ...rest, directory: `${rest.directory}2`, memory: { ...memory, current: sparse } }, progress);
  expect(other.digest).toBe(one.digest);
});

/** Bytes of the memory's data clusters. */
function dataBytes(layer: ArrivingLayer): number {
  const { stored } = layer.overlay.images.memory ?? { stored: [] };
  return new Set(stored).size * 4096;
}

describe("packing anew, from a layer", () => {
  it("gives what sealing the images in that order gives", async () => {
    const first = await seal(world.input, progress);
    await materialise(layerOptions(world, first), progress);
    const touched = [
      { image: "memory" as const, block: 950 },
      { image: "disk" as const, block: 101 },
    ];
    const layer = path.join(directory, "layer");
    const anew = await reorder({ ...layerOptions(world, first), layer, touched, directory: path.join(directory, "anew") }, progress);
    const sealed = await seal({ ...world.input, touched, directory: path.join(directory, "again") }, progress);
    const blocksOf = ({ manifest: { disk, memory, files, pack } }: typeof anew) => ({ disk, memory, files, touched: pack.touched });
    expect(blocksOf(anew)).toEqual(blocksOf(sealed));
    expect(anew.digest).toBe(sealed.digest);
    expect(anew.digest).not.toBe(first.digest);
  });
});

describe("a layer", () => {
  it.skipIf(!hasQemuImg)("reads as the images that were sealed (skipped where there is no qemu-img)", async () => {
    const sealed = await seal(world.input, progress);
    await materialise(layerOptions(world, sealed), progress);
    const files = layerFiles(path.join(directory, "layer"));
    for (const name of ["disk", "memory"] as const) {
      expect(qemuImg("check", "-f", "qcow2", files[name])).toContain("No errors were found");
      expect(qemuImg("compare", files[name], world.input[name]?.current ?? "")).toContain("Images are identical");
      qemuImg("convert", "-O", "raw", files[name], path.join(directory, `${name}.out`));
    }
    expect(await readFile(files.state)).toEqual(await readFile(path.join(directory, "state")));
    expect(await readFile(files.seed)).toEqual(await readFile(path.join(directory, "seed")));
    const raw = { disk: path.join(directory, "disk.out"), memory: path.join(directory, "memory.out") };
    await verifyImages(sealed.manifest, raw, progress);
    await writeFile(raw.memory, Buffer.alloc(6 * mib, "x"));
    await expect(verifyImages(sealed.manifest, raw, progress)).rejects.toMatchObject({ code: "INTEGRITY" });
  });

  it("takes its chunks in any order, and goes on where it was cut off", async () => {
    const sealed = await seal(world.input, progress);
    const options = layerOptions(world, sealed);
    const layer = await ArrivingLayer.open(options);
    const chunks = layer.missing().reverse();
    for (const chunk of chunks.slice(0, 3)) await layer.accept(chunk, await chunkBytes(sealed, chunk));
    await layer.close();
    const again = await ArrivingLayer.open(options);
    expect(again.missing()).toEqual(chunks.slice(3).reverse());
    expect(again.hasFile("state")).toBe(false);
    for (const chunk of again.missing()) await again.accept(chunk, await chunkBytes(sealed, chunk));
    await again.complete();
    await again.close();
    await materialise({ ...options, directory: path.join(directory, "other") }, progress);
    for (const name of ["disk.qcow2", "memory.qcow2", "state", "seed.iso", "manifest.json"]) {
      const [one, other] = await Promise.all(["layer", "other"].map((where) => readFile(path.join(directory, where, name))));
      expect(one?.equals(other ?? Buffer.alloc(0)), name).toBe(true);
    }
    const whole = await ArrivingLayer.open(options);
    expect(whole.missing()).toEqual([]);
    await whole.close();
  });

  it("knows nothing of another overlay's chunks", async () => {
    const sealed = await seal(world.input, progress);
    await materialise(layerOptions(world, sealed), progress);
    const other = await seal({ ...world.input, directory: path.join(directory, "second"), base: "1".repeat(64) }, progress);
    const layer = await ArrivingLayer.open(layerOptions(world, other));
    expect(layer.missing()).toHaveLength(other.manifest.pack.chunks.length);
    await layer.close();
  });
});
