import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { imageDigest } from "../../provider/synthesis/imageDigest.ts";
import { materialise } from "../../provider/synthesis/materialise.ts";
import { seal } from "../../provider/synthesis/seal.ts";

const progress = { signal: AbortSignal.timeout(20_000), status: () => undefined };

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "layer-"));
});
afterEach(async () => rm(directory, { recursive: true }));

it("an image's digest counts what is missing at its end as zeros", async () => {
  const [short, long] = [path.join(directory, "short"), path.join(directory, "long")];
  const virtualBytes = 3 * 1024 * 1024 + 4096;
  await writeFile(short, "x");
  await writeFile(long, Buffer.concat([Buffer.from("x"), Buffer.alloc(virtualBytes - 1)]));
  expect(await imageDigest(short, { virtualBytes })).toBe(await imageDigest(long, { virtualBytes }));
});

it("cancelled work is not begun", async () => {
  const cancelled = { ...progress, signal: AbortSignal.abort() };
  const digest = "0".repeat(64);
  await expect(seal({ directory, kind: "kvm", base: digest, diskMib: 1, files: [] }, cancelled)).rejects.toThrow();
  const overlay = { digest, manifest: "m", index: "i", pack: "p", below: {}, directory };
  await expect(materialise(overlay, cancelled)).rejects.toThrow();
});
