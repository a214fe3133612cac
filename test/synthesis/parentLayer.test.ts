import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { ArrivingLayer } from "../../provider/synthesis/arrivingLayer.ts";
import { layerFiles } from "../../provider/synthesis/layerFiles.ts";
import { materialise } from "../../provider/synthesis/materialise.ts";
import { readOverlay } from "../../provider/synthesis/overlay.ts";
import { isNear, turnBytes } from "../../provider/synthesis/parentLayer.ts";
import { reorder } from "../../provider/synthesis/reorder.ts";
import { seal } from "../../provider/synthesis/seal.ts";
import type { Sealed } from "../../provider/synthesis/sealTypes.ts";
import { blockBytes, hasQemuImg, mib, progress, qemuImg } from "./makeImages.ts";

// each of them starts a dozen programs, which takes long on a busy machine
vi.setConfig({ testTimeout: 60_000 });

const blocks = (6 * mib) / blockBytes;
let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "parent-"));
});
afterEach(() => rm(directory, { recursive: true }));

const inside = (name: string): string => path.join(directory, name);

async function file(name: string, content: Buffer): Promise<string> {
  await writeFile(inside(name), content);
  return inside(name);
}

function optionsOf(sealed: Sealed, layer: string) {
  const [manifest = "", index = "", pack = ""] = sealed.blobs.map((blob) => blob.path);
  return { digest: sealed.digest, manifest, index, pack, directory: inside(layer), below: {} };
}

/** Memory after a boot, its state, and the layer of them. */
async function makeParent(name: string, memory: Buffer, state: Buffer): Promise<{ digest: string; layer: string; raw: string }> {
  const raw = await file(`${name}.raw`, memory);
  const sealed = await seal(
    {
      ...{ directory: inside(`${name}-sealed`), kind: "kvm", base: "0".repeat(64), diskMib: 8, touched: [] },
      memory: { current: raw, virtualBytes: memory.length },
      files: [{ name: "state", path: await file(`${name}.state`, state) }],
    },
    progress,
  );
  await materialise(optionsOf(sealed, name), progress);
  return { digest: sealed.digest, layer: inside(name), raw };
}

/** A draft over the parent, with its layer. */
async function makeDraft(parent: { digest: string; raw: string; layer: string }, memory: Buffer, state: Buffer) {
  const { virtualBytes } = { virtualBytes: memory.length };
  const sealed = await seal(
    {
      ...{ directory: inside("draft-sealed"), kind: "kvm", base: "0".repeat(64), parent: parent.digest, diskMib: 8 },
      memory: { current: await file("memory.raw", memory), below: parent.raw, virtualBytes },
      files: [
        { name: "state", path: await file("memory.state", state) },
        // which the parent does not have
        { name: "seed", path: await file("memory.seed", Buffer.from("seed")) },
      ],
    },
    progress,
  );
  const below = { memory: { file: layerFiles(parent.layer).memory, format: "qcow2" } };
  const options = { ...optionsOf(sealed, "draft"), below };
  await materialise(options, progress);
  return { sealed, options, below };
}

/** Few bytes of each of its blocks are others; some blocks are all new, gone, moved, or new where the parent had none. */
function changed(before: Buffer): Buffer {
  const after = Buffer.from(before);
  for (let block = 0; block < 400; block++) after.writeUInt32LE(block, block * blockBytes + 100);
  randomBytes(50 * blockBytes).copy(after, 400 * blockBytes);
  after.fill(0, 450 * blockBytes, 460 * blockBytes);
  before.copy(after, 460 * blockBytes, 0, 20 * blockBytes);
  randomBytes(100 * blockBytes).copy(after, 1100 * blockBytes);
  return after;
}

/** Nothing compresses it; its last part is zeros. */
const booted = (): Buffer => Buffer.concat([randomBytes(1000 * blockBytes), Buffer.alloc((blocks - 1000) * blockBytes)]);

it("packs what is nearly the parent's as the difference, and recombines it to what it was", async () => {
  const [memory, state] = [booted(), randomBytes(300_000)];
  const parent = await makeParent("parent", memory, state);
  const after = changed(memory);
  const stateAfter = Buffer.concat([state.fill("x", 1000, 1040), Buffer.from("longer")]);
  const { options, sealed, below } = await makeDraft(parent, after, stateAfter);
  const again = { ...options, layer: inside("draft"), touched: [{ image: "memory" as const, block: 7 }] };
  const plain = await reorder({ ...again, directory: inside("plain-sealed") }, progress);
  const small = await reorder({ ...again, parentLayer: parent.layer, directory: inside("small-sealed") }, progress);
  expect(plain.manifest.format).toBe("cloudlet-overlay/1");
  expect(small.manifest.format).toBe("cloudlet-overlay/2");
  expect(small.manifest.files).toMatchObject([{ name: "state", difference: true, bytes: stateAfter.length }, { name: "seed" }]);
  expect(small.manifest.files[1]).not.toHaveProperty("difference");
  expect(small.manifest.memory).toEqual(sealed.manifest.memory);
  // 400 blocks and the state are little more than nothing; what is all new stays as it is
  expect(plain.manifest.pack.bytes).toBeGreaterThan(550 * blockBytes + state.length);
  expect(small.manifest.pack.bytes).toBeLessThan(170 * blockBytes + 20_000);
  const { differences } = await readOverlay(optionsOf(small, "unused"));
  expect(differences.reduce((sum, mark) => sum + mark, 0)).toBe(400);
  await materialise({ ...optionsOf(small, "layer"), below, parent: parent.layer }, progress);
  expect(await readFile(layerFiles(inside("layer")).state)).toEqual(stateAfter);
  if (hasQemuImg) expect(qemuImg("compare", layerFiles(inside("layer")).memory, inside("memory.raw"))).toContain("Images are identical");
});

it("what is a difference is refused without the parent, and with one that has nothing there", async () => {
  const [memory, state] = [booted(), randomBytes(5_000)];
  const parent = await makeParent("parent", memory, state);
  const { options, below } = await makeDraft(parent, changed(memory), state);
  const again = { ...options, layer: inside("draft"), touched: [], parentLayer: parent.layer, directory: inside("small-sealed") };
  const small = { ...optionsOf(await reorder(again, progress), "layer"), below };
  await expect(materialise(small, progress)).rejects.toMatchObject({ code: "BUG" });
  const other = await makeParent("other", Buffer.alloc(blocks * blockBytes), state);
  await expect(materialise({ ...small, parent: other.layer }, progress)).rejects.toMatchObject({
    code: "INTEGRITY",
    message: expect.stringContaining("which its parent does not have") as string,
  });
  expect(existsSync(small.directory)).toBe(false);
  await writeFile(layerFiles(other.layer).memory, "something else".repeat(20));
  await expect(ArrivingLayer.open({ ...small, parent: other.layer })).rejects.toMatchObject({ code: "INTEGRITY" });
});

it("a difference from a difference is what was there before", () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 50 }), fc.uint8Array({ maxLength: 50 }), (one, other) => {
      const bytes = Buffer.from(one);
      turnBytes(bytes, Buffer.from(other));
      for (const [at, byte] of bytes.entries()) expect(byte === one[at]).toBe((other[at] ?? 0) === 0);
      turnBytes(bytes, Buffer.from(other));
      expect(bytes).toEqual(Buffer.from(one));
    }),
  );
});

it.each([
  [Buffer.alloc(90, "a"), Buffer.alloc(90, "a"), true],
  [Buffer.alloc(90, "a"), Buffer.alloc(90, "a").fill("b", 0, 29), true],
  [Buffer.alloc(90, "a"), Buffer.alloc(90, "a").fill("b", 0, 30), false],
  [Buffer.alloc(90, "a"), Buffer.alloc(80, "a"), true],
  [Buffer.alloc(90, "a"), Buffer.alloc(40, "a"), false],
  [Buffer.alloc(0), Buffer.alloc(40, "a"), false],
])("what is near (%#)", (one, other, near) => expect(isNear(one, other)).toBe(near));
