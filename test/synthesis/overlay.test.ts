import { createHash } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { layerFiles } from "../../provider/synthesis/layerFiles.ts";
import { readOverlay } from "../../provider/synthesis/overlay.ts";
import type { SealInput } from "../../provider/synthesis/sealTypes.ts";

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(path.join(tmpdir(), "overlay-"));
});
afterEach(async () => rm(directory, { recursive: true }));

it("an overlay whose manifest has another digest is refused", async () => {
  const manifest = path.join(directory, "manifest");
  await writeFile(manifest, "{}");
  const reading = readOverlay({ digest: createHash("sha256").update("{ }").digest("hex"), manifest, index: manifest });
  await expect(reading).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringContaining("manifest") as string });
});

it("a manifest that is none is refused", async () => {
  const manifest = path.join(directory, "manifest");
  await writeFile(manifest, "{}");
  const reading = readOverlay({ digest: createHash("sha256").update("{}").digest("hex"), manifest, index: manifest });
  await expect(reading).rejects.toMatchObject({ code: "INVALID", message: expect.stringContaining("manifest") as string });
});

it("a layer's files are named after what a sealed overlay has", () => {
  const names: SealInput["files"][number]["name"][] = ["state", "seed", "delta"];
  expect(names.map((name) => path.basename(layerFiles("/layers/x")[name]))).toEqual(["state", "seed.iso", "delta.tar"]);
});
