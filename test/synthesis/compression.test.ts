import { randomBytes } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { Compression } from "../../provider/synthesis/compression.ts";
import { compressFiles } from "../../provider/synthesis/zstd.ts";
import { frameAt } from "../../provider/synthesis/zstdFrame.ts";

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "compression-"));
});
afterEach(async () => rm(directory, { recursive: true }));

const signal = AbortSignal.timeout(20_000);

async function fileOf(name: string, content: Buffer): Promise<{ file: string; bytes: number }> {
  const file = path.join(directory, name);
  await writeFile(file, content);
  return { file, bytes: content.length };
}

/** Something like text: words of a small language, in no order. */
const text = (words: number): Buffer => Buffer.from([...randomBytes(words)].map((byte) => `word${String(byte)}`).join(" "));

it("effort goes into what shrinks, and none into what does not", async () => {
  const files = [await fileOf("random", randomBytes(100_000)), await fileOf("text", text(20_000))];
  const quick = await new Compression("quick", signal).compress(files);
  const small = await new Compression("small", signal).compress(files);
  const best = await compressFiles([files[1]?.file ?? ""], "-19", signal);
  expect(small[0]?.length).toBe(quick[0]?.length);
  expect(small[1]?.length).toBeLessThan(quick[1]?.length ?? 0);
  expect(small[1]).toEqual(best[0]);
});

it("frames say how large they and their contents are, whatever the size", async () => {
  for (const bytes of [1, 255, 256, 65_791, 65_792, 300_000]) {
    const { file } = await fileOf("content", Buffer.concat([randomBytes(Math.ceil(bytes / 2)), Buffer.alloc(Math.floor(bytes / 2))]));
    const [frame = Buffer.alloc(0)] = await compressFiles([file], "-3", signal);
    expect(frameAt(frame, 0)).toEqual({ bytes: frame.length, rawBytes: bytes });
    expect(frameAt(frame.subarray(0, -1), 0)).toBeUndefined();
    expect(frameAt(frame, 1)).toBeUndefined();
  }
});
