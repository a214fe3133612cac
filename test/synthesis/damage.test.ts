import { spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { copyFile, mkdtemp, readFile, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { ArrivingLayer } from "../../provider/synthesis/arrivingLayer.ts";
import { encodeIndex } from "../../provider/synthesis/blockIndex.ts";
import type { Manifest } from "../../provider/synthesis/manifest.ts";
import { materialise } from "../../provider/synthesis/materialise.ts";
import { readOverlay } from "../../provider/synthesis/overlay.ts";
import { seal } from "../../provider/synthesis/seal.ts";
import type { Sealed } from "../../provider/synthesis/sealTypes.ts";
import { Decompressor } from "../../provider/synthesis/zstd.ts";
import { type World, chunkBytes, layerOptions, makeWorld, mib, progress } from "./makeImages.ts";

let world: World;
let sealed: Sealed;
let directory = "";
beforeAll(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "damage-"));
  world = await makeWorld(directory);
  sealed = await seal(world.input, progress);
});
afterAll(async () => rm(directory, { recursive: true }));

const sha256 = (bytes: string | Buffer): string => createHash("sha256").update(bytes).digest("hex");
const parts = ["manifest", "index", "pack"] as const;
type Part = (typeof parts)[number];

/** The options for a copy of the overlay in which some blobs are other ones. */
async function copied(change: (blob: string, part: Part) => Promise<void>) {
  const options = layerOptions(world, sealed);
  const copy = { ...options };
  for (const part of parts) {
    copy[part] = path.join(directory, `damaged-${part}`);
    await copyFile(options[part], copy[part]);
    await change(copy[part], part);
  }
  return copy;
}

/** The options for an overlay whose manifest says something else, with a digest that fits it. */
async function lying(change: (manifest: Manifest) => unknown, blobs: Partial<Record<Part, Buffer>> = {}) {
  const manifest = structuredClone(sealed.manifest);
  const changed = change(manifest) ?? manifest;
  const text = JSON.stringify(changed);
  const options = await copied(async (blob, part) => {
    const content = part === "manifest" ? text : blobs[part];
    if (content !== undefined) await writeFile(blob, content);
  });
  return { ...options, digest: sha256(text) };
}

/** That no layer comes of it, that the part is named, and that nothing is left behind. */
async function expectRefused(options: Awaited<ReturnType<typeof copied>>, words: RegExp): Promise<void> {
  const refusal = await materialise(options, progress).then(
    () => undefined,
    (error: unknown) => error,
  );
  expect(refusal).toMatchObject({ code: expect.stringMatching(/^(INTEGRITY|INVALID)$/) as string });
  expect(String(refusal)).toMatch(words);
  expect(existsSync(options.directory)).toBe(false);
}

describe("an overlay that was damaged", () => {
  it("is found by any flipped byte", async () => {
    const flip = async (part: Part, where: number): Promise<void> => {
      const options = await copied(async (blob, name) => {
        if (name !== part) return;
        const bytes = await readFile(blob);
        const at = Math.floor(where * bytes.length);
        bytes.writeUInt8(bytes.readUInt8(at) ^ 1, at);
        await writeFile(blob, bytes);
      });
      await expectRefused(options, new RegExp(`the overlay's ${part}`));
    };
    const places = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
    await fc.assert(fc.asyncProperty(fc.constantFrom(...parts), places, flip), { numRuns: 12 });
  });

  it.each(parts)("is found by a %s that is cut short", async (part) => {
    const options = await copied(async (blob, name) => {
      if (name === part) await truncate(blob, (await stat(blob)).size - 1);
    });
    await expectRefused(options, new RegExp(`the overlay's ${part}`));
  });

  it("is found chunk by chunk, and a good chunk is taken afterwards", async () => {
    const options = layerOptions(world, sealed, path.join(directory, "arriving"));
    const layer = await ArrivingLayer.open(options);
    const good = await chunkBytes(sealed, 3);
    for (const bad of [good.subarray(1), Buffer.alloc(0), await chunkBytes(sealed, 2), Buffer.concat([good, good])]) {
      await expect(layer.accept(3, bad)).rejects.toMatchObject({
        code: "INTEGRITY",
        message: expect.stringContaining("chunk 3") as string,
      });
      expect(layer.has(3)).toBe(false);
    }
    await layer.accept(3, good);
    expect(layer.has(3)).toBe(true);
    await expect(layer.accept(10_000, good)).rejects.toMatchObject({ code: "INVALID" });
    await layer.close();
  });
});

describe("a manifest that lies", () => {
  const first = (manifest: Manifest, position = 3) => {
    const chunk = manifest.pack.chunks[position];
    if (chunk === undefined) throw new Error("the overlay has few chunks");
    return chunk;
  };
  const lies: Record<string, { lie: (manifest: Manifest) => unknown; words: RegExp }> = {
    "is no object": { lie: () => [], words: /manifest/ },
    "is of another format": { lie: (manifest) => ({ ...manifest, format: "cloudlet-overlay/3" }), words: /manifest.*format/ },
    "has a file that differs from a parent's, and no parent": {
      lie: (manifest) => ({ ...manifest, files: manifest.files.map((file) => ({ ...file, difference: true })) }),
      words: /says the file state is a difference/,
    },
    "has more fields than it may": { lie: (manifest) => ({ ...manifest, run: "sh" }), words: /manifest/ },
    "has overlapping chunks": { lie: (manifest) => (first(manifest).offset -= 1) && manifest, words: /chunks\.3 begins/ },
    "has a gap between chunks": { lie: (manifest) => (first(manifest).offset += 1) && manifest, words: /chunks\.3 begins/ },
    "has a chunk outside of the pack": { lie: (manifest) => (first(manifest).offset = 2 ** 50) && manifest, words: /chunks\.3 begins/ },
    "has chunks in negative places": { lie: (manifest) => (first(manifest).offset = -1) && manifest, words: /pack\.chunks\.3\.offset/ },
    "counts the pack wrong": { lie: (manifest) => (manifest.pack.bytes += 1) && manifest, words: /the pack has/ },
    "has a chunk of any size": { lie: (manifest) => (first(manifest).rawBytes = 2 ** 40) && manifest, words: /chunks\.3 has/ },
    "has a chunk that is no whole blocks": { lie: (manifest) => (first(manifest).rawBytes += 1) && manifest, words: /chunks\.3 holds/ },
    "has a chunk that decompresses to less": {
      lie: (manifest) => {
        first(manifest, 3).rawBytes += 4096;
        first(manifest, 2).rawBytes -= 4096;
      },
      words: /pack, chunk [23]/,
    },
    "has a smaller disk": {
      lie: (manifest) => manifest.disk && (manifest.disk.virtualBytes = 6 * mib) && manifest,
      words: /outside of the disk/,
    },
    "has half a block": {
      lie: (manifest) => manifest.disk && (manifest.disk.virtualBytes += 512) && manifest,
      words: /disk\.virtualBytes/,
    },
    "has a disk of any size": {
      lie: (manifest) => manifest.disk && (manifest.disk.virtualBytes = 2 ** 52) && manifest,
      words: /disk\.virtualBytes/,
    },
    "has more blocks than the index": { lie: (manifest) => manifest.disk && (manifest.disk.blocks += 1) && manifest, words: /index/ },
    "has more blocks than the image": {
      lie: (manifest) => manifest.disk && (manifest.disk.blocks = 2 ** 30) && manifest,
      words: /disk\.blocks/,
    },
    "has fewer blocks than the index": { lie: (manifest) => manifest.disk && (manifest.disk.blocks -= 1) && manifest, words: /index/ },
    "has no memory for the index": { lie: (manifest) => delete manifest.memory && manifest, words: /index/ },
    "touches more chunks than there are": { lie: (manifest) => (manifest.pack.touched = 10_000) && manifest, words: /touched/ },
    "has a file in another's chunk": { lie: (manifest) => manifest.files[1]?.chunks.push(0) && manifest, words: /seed is in chunk 0/ },
    "has a file in no chunk": { lie: (manifest) => manifest.files[1]?.chunks.push(9_999) && manifest, words: /seed is in chunk 9999/ },
    "counts a file wrong": {
      lie: (manifest) => manifest.files[0] && (manifest.files[0].bytes += 1) && manifest,
      words: /the file state has/,
    },
    "has another digest for a file": {
      lie: (manifest) => manifest.files[0] && (manifest.files[0].digest = "0".repeat(64)) && manifest,
      words: /the overlay's state/,
    },
    "has a file twice": {
      lie: (manifest) => manifest.files.push({ name: "state", bytes: 0, digest: sha256(""), chunks: [] }) && manifest,
      words: /state twice/,
    },
    "has a file whose name climbs out": {
      lie: (manifest) => ({ ...manifest, files: [{ ...manifest.files[0], name: "../../escaped" }, ...manifest.files.slice(1)] }),
      words: /manifest.*files\.0\.name/,
    },
    "has a digest that climbs out": { lie: (manifest) => (manifest.base = "../../escaped") && manifest, words: /manifest.*base/ },
    "counts the index wrong": { lie: (manifest) => (manifest.index.bytes -= 1) && manifest, words: /overlay's index/ },
  };

  it.each(Object.entries(lies))("%s", async (_, { lie, words }) => expectRefused(await lying(lie), words));

  it("is not even JSON", async () => {
    const options = await copied(async (blob, part) => (part === "manifest" ? writeFile(blob, "{") : undefined));
    await expectRefused({ ...options, digest: sha256("{") }, /manifest is not JSON/);
  });
});

const bombBytes = 2 ** 27;

/** A zstd frame with 128 MiB of zeros, its header changed to say something else. */
function bomb(says: number): Buffer {
  const { stdout } = spawnSync("sh", ["-c", `head -c ${String(bombBytes)} /dev/zero | zstd -1 -c -q --stream-size=${String(bombBytes)}`]);
  const frame = Buffer.from(stdout);
  const at = frame.indexOf(Buffer.from([0, 0, 0, 8]));
  if (at < 5 || at > 8) throw new Error("the frame's header has no size of four bytes");
  frame.writeUInt32LE(says, at);
  return frame;
}

describe("a zstd bomb", () => {
  const inPlaceOfTheLast = async (frame: Buffer) => {
    const pack = await readFile(sealed.blobs[2]?.path ?? "");
    const { offset = 0 } = sealed.manifest.pack.chunks.at(-1) ?? {};
    const changed = Buffer.concat([pack.subarray(0, offset), frame]);
    return lying(
      (manifest) => {
        Object.assign(manifest.pack.chunks.at(-1) ?? {}, { bytes: frame.length, digest: sha256(frame) });
        Object.assign(manifest.pack, { bytes: changed.length, digest: sha256(changed) });
      },
      { pack: changed },
    );
  };

  it("in the pack is refused by its header, and while decompressing when the header lies", async () => {
    const { rawBytes = 0 } = sealed.manifest.pack.chunks.at(-1) ?? {};
    const last = sealed.manifest.pack.chunks.length - 1;
    await expectRefused(
      await inPlaceOfTheLast(bomb(bombBytes)),
      new RegExp(`pack, chunk ${String(last)} says it decompresses to ${String(bombBytes)}`),
    );
    await expectRefused(await inPlaceOfTheLast(bomb(rawBytes)), new RegExp(`pack, chunk ${String(last)}`));
  });

  it("is named even where other chunks are decompressed beside it", async () => {
    const decompressor = new Decompressor();
    const good = spawnSync("zstd", ["-c", "-q", "--stream-size=8"], { input: "contents" }).stdout;
    const bad = bomb(8);
    const tried = await Promise.allSettled(
      [good, good, good, bad, good].map((compressed, chunk) =>
        decompressor.decompress({ part: `chunk ${String(chunk)}`, compressed, rawBytes: 8 }),
      ),
    );
    expect(tried.map(({ status }) => status)).toEqual(["fulfilled", "fulfilled", "fulfilled", "rejected", "fulfilled"]);
    expect(tried[3]).toMatchObject({ reason: { code: "INTEGRITY", message: expect.stringContaining("chunk 3") as string } });
  });

  it("in the index is refused while decompressing", async () => {
    for (const index of [bomb(bombBytes), bomb(1000)]) {
      const options = await lying((manifest) => (manifest.index = { digest: sha256(index), bytes: index.length }) && manifest, { index });
      await expectRefused(options, /overlay's index/);
    }
  });
});

it("an index that takes blocks from outside of the pack, or leaves some unused, is refused", async () => {
  const { images } = await readOverlay(layerOptions(world, sealed));
  const { disk, memory } = images;
  if (disk === undefined || memory === undefined) throw new Error("the overlay has both images");
  for (const stored of [disk.stored.map((block) => block + 1000), disk.stored.map(() => 0)]) {
    const raw = encodeIndex([{ ...disk, stored }, memory]);
    const index = spawnSync("zstd", ["-c", "-q"], { input: raw }).stdout;
    await expectRefused(
      await lying((manifest) => (manifest.index = { digest: sha256(index), bytes: index.length }) && manifest, { index }),
      /index/,
    );
  }
});
