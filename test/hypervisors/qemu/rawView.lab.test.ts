import { execFile } from "node:child_process";
import { open, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, expect, it } from "vitest";
import { withRawView } from "../../../provider/hypervisors/qemu/rawView.ts";

const execute = promisify(execFile);
const mebibyte = 1024 ** 2;
let root: string;
let image: string;
beforeAll(async () => {
  root = await mkdtemp(join(tmpdir(), "raw-view-"));
  const base = join(root, "base.raw");
  image = join(root, "image.qcow2");
  await writeFile(base, Buffer.alloc(mebibyte, "b"));
  await execute("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, image, "4M"]);
  await execute("qemu-io", ["-c", "write -P 0x6f 4k 4k", image]);
});
afterAll(() => rm(root, { recursive: true, force: true }));

const views = async () => (await readdir("/run")).filter((name) => name.startsWith("cloudlet-view-"));

it("shows an image together with what it stands on, and is gone afterwards", async () => {
  const before = await views();
  const bytes = await withRawView(image, { format: "qcow2" }, (view) => readFile(view));
  expect(bytes.length).toBe(4 * mebibyte);
  expect(bytes.subarray(0, 4096)).toEqual(Buffer.alloc(4096, "b"));
  expect(bytes.subarray(4096, 8192)).toEqual(Buffer.alloc(4096, "o"));
  expect(bytes.subarray(mebibyte).every((byte) => byte === 0)).toBe(true);
  expect(await views()).toEqual(before);
});

it("takes writes only where they are asked for", async () => {
  const write = async (view: string) => {
    const handle = await open(view, "r+");
    await handle.write(Buffer.alloc(4096, "w"), 0, 4096, 8192).finally(() => handle.close());
  };
  await expect(withRawView(image, { format: "qcow2" }, write)).rejects.toThrow();
  await withRawView(image, { format: "qcow2", writable: true }, write);
  const bytes = await withRawView(image, { format: "qcow2" }, (view) => readFile(view));
  expect(bytes.subarray(8192, 12_288)).toEqual(Buffer.alloc(4096, "w"));
});

it("says in QEMU's words why an image cannot be opened, and leaves nothing", async () => {
  const before = await views();
  const broken = join(root, "broken.qcow2");
  await writeFile(broken, "not an image");
  await expect(withRawView(broken, { format: "qcow2" }, () => Promise.resolve())).rejects.toThrow(/not in qcow2 format/);
  expect(await views()).toEqual(before);
});

it("closes the view when the work fails", async () => {
  const before = await views();
  await expect(withRawView(image, { format: "qcow2" }, () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(await views()).toEqual(before);
});
