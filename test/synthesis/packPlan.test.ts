import { randomBytes } from "node:crypto";
import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { describe, expect, it } from "vitest";
import { findDense } from "../../provider/synthesis/density.ts";
import { blockBytes } from "../../provider/synthesis/manifest.ts";
import { orderBlocks } from "../../provider/synthesis/packPlan.ts";

describe("a pack", () => {
  it("has what is touched first, then what shrinks, then what does not", () => {
    const index = { blocks: Uint32Array.of(10, 11, 12, 13), stored: Uint32Array.of(0, 1, 2, 3) };
    const dense = Uint8Array.of(1, 0, 1, 0);
    const { order, ...counts } = orderBlocks({ memory: index }, { count: 4, touched: [{ image: "memory", block: 12 }], dense });
    expect([...order]).toEqual([2, 1, 3, 0]);
    expect(counts).toEqual({ touchedBlocks: 1, denseBlocks: 1 });
  });

  it("tells media from text and tables", async () => {
    const directory = await mkdtemp(path.join(tmpdir(), "pack-"));
    const file = path.join(directory, "blocks");
    const table = Buffer.alloc(blockBytes);
    for (let at = 0; at < blockBytes; at += 8) table.writeBigUInt64LE(0xffff8880_00000000n + BigInt(at * 4093), at);
    await writeFile(file, Buffer.concat([randomBytes(blockBytes), Buffer.alloc(blockBytes, "some text "), table]));
    const handle = await open(file, "r");
    const source = { handles: [handle], sources: new Uint8Array(3), blocks: Uint32Array.of(0, 1, 2) };
    expect([...(await findDense(source, 3, AbortSignal.timeout(5_000)))]).toEqual([1, 0, 0]);
    await handle.close();
    await rm(directory, { recursive: true });
  });
});
