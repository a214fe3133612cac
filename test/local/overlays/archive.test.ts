import { execFileSync } from "node:child_process";
import { randomInt } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { acquireOverlay } from "../../../provider/local/overlays/acquire.ts";
import { openArchive, writeArchive } from "../../../provider/local/overlays/archive.ts";
import { partNames, type PartName } from "../../../provider/local/overlays/parts.ts";
import { bytesOf, digestOf, sampleOverlay, sampleParts, sourceOf, watch } from "./sample.ts";

let folder: string;
let file: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-archive-"));
  file = join(folder, "faces.tar");
});
afterEach(() => rm(folder, { recursive: true }));

it("gives back what was put in, and the digest of the manifest as its identity", async () => {
  const contents = sampleParts();
  await writeArchive(file, sourceOf(contents), watch);
  const { digest, blobs } = await acquireOverlay({ file }, watch);
  expect(digest).toBe(digestOf(contents["manifest.json"]));
  const expected = partNames.map((name) => contents[name]).reverse();
  expect(blobs.map((blob) => blob.digest)).toEqual(expected.map(digestOf));
  expect(await Promise.all(blobs.map((blob) => bytesOf(blob.stream())))).toEqual(expected);
});

it("is a tar as others read it, and the same bytes each time", async () => {
  const contents = sampleParts();
  await writeArchive(file, sourceOf(contents), watch);
  await writeArchive(join(folder, "again.tar"), sourceOf(contents), watch);
  expect(await readFile(join(folder, "again.tar"))).toEqual(await readFile(file));
  expect(execFileSync("tar", ["-tf", file], { encoding: "utf8" }).trim().split("\n")).toEqual(["contents.json", ...partNames]);
});

it("is read as well when another program has packed it", async () => {
  const { manifest, index, pack } = sampleOverlay({ base: "0".repeat(64) });
  await writeArchive(file, sourceOf({ "manifest.json": manifest, index, pack }), watch);
  execFileSync("tar", ["-xf", file, "-C", folder]);
  execFileSync("tar", ["-cf", file, "-C", folder, "--format=gnu", "contents.json", "manifest.json", "index", "pack"]);
  expect(await acquireOverlay({ file }, watch)).toMatchObject({ digest: digestOf(manifest) });
});

it("leaves nothing behind when a part was damaged on its way, and keeps what was there", async () => {
  await writeFile(file, "before");
  const contents = sampleParts();
  const other = Buffer.from(contents.pack);
  other[100] = (other[100] ?? 0) ^ 1;
  const writing = writeArchive(file, sourceOf(contents, { ...contents, pack: other }), watch);
  await expect(writing).rejects.toMatchObject({
    code: "INTEGRITY",
    message: expect.stringMatching(/^pack of memory is damaged/) as string,
  });
  expect(await readdir(folder)).toEqual(["faces.tar"]);
  expect(await readFile(file, "utf8")).toBe("before");
});

it("leaves nothing behind when it is cancelled", async () => {
  const stop = new AbortController();
  const endless = async function* (): AsyncGenerator<Buffer> {
    yield Buffer.alloc(10);
    stop.abort();
    await Promise.resolve();
    yield Buffer.alloc(10);
  };
  const source = { ...sourceOf({ "manifest.json": Buffer.alloc(100) }), read: () => Promise.resolve(Readable.from(endless())) };
  await expect(writeArchive(file, source, { ...watch, signal: stop.signal })).rejects.toMatchObject({ code: "ABORTED" });
  expect(await readdir(folder)).toEqual([]);
});

it("says which path cannot be written or read", async () => {
  const source = sourceOf({ "manifest.json": Buffer.alloc(1) });
  await expect(writeArchive(join(folder, "no/x.tar"), source, watch)).rejects.toMatchObject({ code: "NOT_FOUND" });
  await expect(openArchive(join(folder, "no.tar"))).rejects.toMatchObject({
    code: "NOT_FOUND",
    message: expect.stringContaining("no.tar") as string,
  });
});

describe("is refused, with the name of the part,", () => {
  let contents: Record<PartName, Buffer>;
  let whole: Buffer;
  const acquire = () => acquireOverlay({ file }, watch);

  beforeEach(async () => {
    contents = sampleParts();
    await writeArchive(file, sourceOf(contents), watch);
    whole = await readFile(file);
  });

  it.each(partNames)("when one bit of %s is another", async (name) => {
    const at = whole.indexOf(contents[name]) + randomInt(contents[name].length);
    whole[at] = (whole[at] ?? 0) ^ (1 << randomInt(8));
    await writeFile(file, whole);
    await expect(acquire()).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining(`${name} of ${file} is damaged`) as string,
    });
  });

  it.each(partNames)("when it ends in the middle of %s", async (name) => {
    await truncate(file, whole.indexOf(contents[name]) + 1);
    await expect(acquire()).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringContaining(name) as string });
  });

  it("when it ends between two parts", async () => {
    await truncate(file, whole.indexOf(contents.base) - 512);
    await expect(acquire()).rejects.toThrow(/it ends before base/);
  });

  it("or changes nothing, whichever bit is another", async () => {
    const expected = digestOf(contents["manifest.json"]);
    for (let attempt = 0; attempt < 60; attempt++) {
      const changed = Buffer.from(whole);
      const at = randomInt(changed.length);
      changed[at] = (changed[at] ?? 0) ^ (1 << randomInt(8));
      await writeFile(file, changed);
      const result = await acquire().catch((error: unknown) => error);
      expect(result).toMatchObject(result instanceof Error ? { code: "INTEGRITY" } : { digest: expected });
    }
  });

  it.each(["../../etc/passwd", "/etc/passwd", "pack/../../x"])("when an entry is called %s", async (name) => {
    const header = whole.subarray(whole.indexOf("index\0", 512), whole.indexOf("index\0", 512) + 512);
    header.fill(0, 0, 100);
    header.write(name);
    setChecksum(header);
    await writeFile(file, whole);
    await expect(acquire()).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining(`"${name}" where index is listed`) as string,
    });
  });

  it("when a part is a link", async () => {
    const header = whole.subarray(whole.indexOf("index\0", 512), whole.indexOf("index\0", 512) + 512);
    header.write("2", 156);
    setChecksum(header);
    await writeFile(file, whole);
    await expect(acquire()).rejects.toThrow(/"index" is not a plain file/);
  });

  it("when something is in it that is not listed", async () => {
    execFileSync("tar", ["-rf", file, "-C", "/", "etc/hostname"]);
    await expect(acquire()).rejects.toThrow(/"etc\/hostname", which is not listed/);
  });

  it("when its index, its base or the memory of its base belongs to another overlay", async () => {
    const other = sampleParts();
    const mixtures: [Partial<typeof contents>, RegExp][] = [
      [{ index: other.index }, /faces.tar: the overlay's index has the digest/],
      [{ base: other.base }, /base of .* belongs to another overlay/],
      [{ "parent/index": other["parent/index"] }, /faces.tar, parent\/: the overlay's index has the digest/],
      [
        { ...other, "manifest.json": contents["manifest.json"], index: contents.index, pack: contents.pack },
        /parent\/manifest.json of .* belongs to another/,
      ],
    ];
    for (const [mixed, message] of mixtures) {
      await writeArchive(file, sourceOf({ ...contents, ...mixed }), watch);
      await expect(acquire()).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringMatching(message) as string });
    }
  });

  it("when a part is missing from the list", async () => {
    const { index: _, ...rest } = contents;
    await writeArchive(file, sourceOf(rest), watch);
    await expect(acquire()).rejects.toThrow(/has no part index/);
  });

  it("when it is not the overlay that was asked for", async () => {
    await expect(acquireOverlay({ file }, { ...watch, digest: "0".repeat(64) })).rejects.toMatchObject({ code: "INTEGRITY" });
  });

  it("when it is something else", async () => {
    for (const text of ["", "x", "x".repeat(5000), "\0".repeat(5000)]) {
      await writeFile(file, text);
      await expect(acquire()).rejects.toMatchObject({ code: "INTEGRITY" });
    }
  });
});

it("an index that is a bomb is refused while it is decompressed", async () => {
  const bomb = execFileSync("zstd", ["-q", "-c"], { input: Buffer.alloc(50_000_000), maxBuffer: 1e8 });
  const { manifest, pack } = sampleOverlay({ base: "0".repeat(64) });
  const lying = { ...(JSON.parse(manifest.toString()) as object), index: { digest: digestOf(bomb), bytes: bomb.length } };
  await writeArchive(file, sourceOf({ "manifest.json": Buffer.from(JSON.stringify(lying)), index: bomb, pack }), watch);
  await expect(acquireOverlay({ file }, watch)).rejects.toMatchObject({
    code: "INTEGRITY",
    message: expect.stringMatching(/index decompresses to more/) as string,
  });
});

function setChecksum(header: Buffer): void {
  header.fill(" ", 148, 156);
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, 148);
}
