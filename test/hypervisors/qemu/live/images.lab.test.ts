import { mkdtemp, open, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { Images } from "../../../../provider/hypervisors/qemu/live/images.ts";
import { hashOf } from "../../../../provider/hypervisors/qemu/live/pageTable.ts";

const signal = AbortSignal.timeout(60_000);
const nothing = Promise.resolve(Buffer.alloc(0));
const page = (value: number): Buffer => Buffer.alloc(4096, value);

let directory = "";
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-images-"));
});
afterEach(() => rm(directory, { recursive: true, force: true }));

/** A raw image with these pages, and nothing elsewhere. */
async function image(name: string, pages: Record<number, Buffer>): Promise<string> {
  const path = join(directory, name);
  const file = await open(path, "w");
  for (const [unit, bytes] of Object.entries(pages)) await file.write(bytes, 0, bytes.length, Number(unit) * 4096);
  await file.truncate(1024 * 4096);
  await file.close();
  return path;
}

it("a page is found where saved memory has it, and a block wherever the disk has it", async () => {
  const disk = await image("disk", { 3: page(1) });
  const memory = await image("memory", { 0: page(2), 500: page(3) });
  const images = await Images.indexed([disk, memory], nothing, signal);
  try {
    expect(images.asSaved(500, page(3))).toEqual({ image: 1, unit: 500 });
    expect(images.asSaved(501, page(3))).toBeUndefined();
    expect(images.asSaved(0, page(2))).toEqual({ image: 1, unit: 0 });
    expect(images.asSaved(0, page(3))).toBeUndefined();
    expect(images.asSaved(5000, page(3)), "beyond its end").toBeUndefined();
    expect(images.find(hashOf(page(1)))).toEqual({ image: 0, unit: 3 });
    expect(images.read({ image: 1, unit: 500 }, 1)).toEqual(page(3));
  } finally {
    await images.close();
  }
});

it("nothing is as saved where no memory was saved, or the target alone has it", async () => {
  const disk = await image("disk", { 3: page(1) });
  const images = await Images.indexed([disk], Promise.resolve(hashOf(page(7))), signal);
  try {
    expect(images.asSaved(3, page(1))).toBeUndefined();
    expect(images.find(hashOf(page(7)))).toEqual({ image: images.former, unit: 0 });
  } finally {
    await images.close();
  }
});
