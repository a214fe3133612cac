import { spawnSync } from "node:child_process";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { type ImageIndex, zeroBlock } from "../../provider/synthesis/blockIndex.ts";
import { qcow2Layout } from "../../provider/synthesis/qcow2Layout.ts";

const hasQemuImg = spawnSync("qemu-img", ["--version"]).status === 0;
const blockBytes = 4096;

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "qcow2-"));
});
afterEach(async () => rm(directory, { recursive: true }));

/** What a block of the pack holds in these tests: its own number, so that a misplaced one shows. */
const contentOf = (block: number): Buffer => Buffer.alloc(blockBytes, `block ${String(block)};`);

async function writeImage(file: string, options: Parameters<typeof qcow2Layout>[0]): Promise<void> {
  const layout = qcow2Layout(options);
  const handle = await open(file, "w");
  await handle.write(layout.metadata, 0, layout.metadata.length, 0);
  for (const [slot, block] of layout.slots.entries()) {
    await handle.write(contentOf(block), 0, blockBytes, layout.metadata.length + slot * blockBytes);
  }
  await handle.close();
}

function expected(image: ImageIndex, virtualBytes: number, below: Buffer): Buffer {
  const raw = Buffer.alloc(virtualBytes);
  below.copy(raw);
  for (const [position, block] of image.blocks.entries()) {
    const stored = image.stored[position] ?? zeroBlock;
    (stored === zeroBlock ? Buffer.alloc(blockBytes) : contentOf(stored)).copy(raw, block * blockBytes);
  }
  return raw;
}

const qemuImg = (...args: string[]): string => {
  const { status, stdout, stderr } = spawnSync("qemu-img", args, { encoding: "utf8" });
  return status === 0 ? stdout : `qemu-img ${args.join(" ")} failed: ${stdout}${stderr}`;
};

/** An image with some of its blocks in the pack, equal ones included, in any order. */
const images = fc
  .record({ blocksOfImage: fc.integer({ min: 1, max: 1500 }), storedBlocks: fc.integer({ min: 1, max: 30 }) })
  .chain((sizes) =>
    fc
      .array(fc.tuple(fc.nat(sizes.blocksOfImage - 1), fc.option(fc.nat(sizes.storedBlocks - 1))), { maxLength: 60 })
      .map((pairs) => [...new Map(pairs)].sort(([a], [b]) => a - b))
      .map((pairs) => ({
        virtualBytes: sizes.blocksOfImage * blockBytes,
        storedBlocks: sizes.storedBlocks,
        index: {
          blocks: Uint32Array.from(pairs, ([block]) => block),
          stored: Uint32Array.from(pairs, ([, stored]) => stored ?? zeroBlock),
        },
      })),
  );

describe.skipIf(!hasQemuImg)("a layer's qcow2 file (skipped where there is no qemu-img)", () => {
  it("is what qemu-img takes for correct, and reads as the image", async () => {
    const check = async (options: Parameters<typeof qcow2Layout>[0]): Promise<void> => {
      const [file, base, raw] = ["layer.qcow2", "base.raw", "expected.raw"].map((name) => path.join(directory, name)) as [
        string,
        string,
        string,
      ];
      const below = Buffer.alloc(options.virtualBytes, "below");
      await writeFile(base, below);
      await writeImage(file, { ...options, below: { file: base, format: "raw" } });
      await writeFile(raw, expected(options.index, options.virtualBytes, below));
      expect(qemuImg("check", "-f", "qcow2", file)).toContain("No errors were found");
      expect(qemuImg("compare", "-f", "qcow2", "-F", "raw", file, raw)).toContain("Images are identical");
    };
    await fc.assert(fc.asyncProperty(images, check), { numRuns: 15 });
  });

  it("may be as large as a disk, and share one block more often than 16 bits can count", async () => {
    const count = 70_000;
    const file = path.join(directory, "layer.qcow2");
    const index = { blocks: Uint32Array.from({ length: count }, (_, n) => n * 29), stored: new Uint32Array(count) };
    await writeImage(file, { virtualBytes: 8 * 1024 ** 3, storedBlocks: 1, index });
    expect(qemuImg("check", "-f", "qcow2", file)).toContain("No errors were found");
  });
});

it("a layer's data lies in the order of the pack, behind all metadata", () => {
  const index = { blocks: Uint32Array.of(3, 7, 9, 10), stored: Uint32Array.of(5, 2, zeroBlock, 5) };
  const { metadata, slots, fileBytes } = qcow2Layout({ virtualBytes: 64 * blockBytes, storedBlocks: 8, index });
  expect([...slots]).toEqual([2, 5]);
  expect(fileBytes).toBe(metadata.length + 2 * blockBytes);
});

it("a base whose path is too long to be referred to is refused", () => {
  const index = { blocks: new Uint32Array(0), stored: new Uint32Array(0) };
  const below = { file: `/${"x".repeat(1100)}`, format: "raw" };
  expect(() => qcow2Layout({ virtualBytes: blockBytes, storedBlocks: 0, index, below })).toThrow(/too long/);
});
