import { existsSync, lstatSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pack } from "tar-stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { compressionOf } from "../../../provider/hypervisors/lxd/images.ts";
import { createVolume, readVolume, shiftVolume, writeVolume } from "../../../provider/hypervisors/lxd/volumes.ts";

const progress = { signal: AbortSignal.timeout(60_000), status: () => undefined };

describe("a volume's directory", () => {
  let volume: string;
  beforeEach(async () => {
    volume = join(mkdtempSync(join(tmpdir(), "lxd-volume-")), "v");
    await createVolume(volume);
  });
  afterEach(() => rmSync(join(volume, ".."), { recursive: true }));

  it.skipIf(process.getuid?.() !== 0)("has its owners counted from the container's root, once", async () => {
    writeFileSync(join(volume, "data/file"), "x", { mode: 0o640 });
    symlinkSync("nowhere", join(volume, "data/link"));
    for (let i = 0; i < 2; i++) await shiftVolume(volume, 100_000);
    expect(["", "file", "link"].map((name) => lstatSync(join(volume, "data", name)).uid)).toEqual([100_000, 100_000, 100_000]);
    expect(lstatSync(join(volume, "data/file")).mode & 0o7777).toBe(0o640);
    await shiftVolume(volume, 0);
    expect(lstatSync(join(volume, "data/file")).uid).toBe(0);
  });
  it("is replaced as a whole by a tar", async () => {
    writeFileSync(join(volume, "data/old"), "");
    const tar = pack();
    const { uid, gid } = lstatSync(volume);
    tar.entry({ name: "deep/file", uid, gid, mode: 0o600 }, "content");
    tar.finalize();
    await writeVolume(volume, Readable.from(tar), progress);
    expect(existsSync(join(volume, "data/old"))).toBe(false);
    expect(readFileSync(join(volume, "data/deep/file"), "utf8")).toBe("content");
    (await readVolume(volume)).destroy();
  });
  it("lets no tar write outside it", async () => {
    const { uid, gid } = lstatSync(volume);
    const tar = pack();
    tar.entry({ name: "way", type: "symlink", linkname: join(volume, ".."), uid, gid });
    tar.entry({ name: "way/escaped", uid, gid }, "x");
    tar.finalize();
    await expect(writeVolume(volume, Readable.from(tar), progress)).rejects.toMatchObject({ code: "INTEGRITY" });
    expect(existsSync(join(volume, "../escaped"))).toBe(false);
  });
  it("is missing where it was never made", async () => {
    await expect(readVolume(join(volume, "none"))).rejects.toMatchObject({ code: "NOT_FOUND" });
  });
});

describe("a base's format", () => {
  const tar = Buffer.alloc(262);
  tar.write("ustar", 257);
  it.each([
    ["none", tar],
    ["gzip", Buffer.from("1f8b0800", "hex")],
    ["xz", Buffer.from("fd377a585a0000", "hex")],
    ["zstd", Buffer.from("28b52ffd00", "hex")],
    ["bzip2", Buffer.from("425a6839", "hex")],
    [undefined, Buffer.from("QFI\xfb", "latin1")],
    [undefined, Buffer.alloc(0)],
  ])("is told from its first bytes: %s", (compression, head) => expect(compressionOf(head)).toBe(compression));
});
