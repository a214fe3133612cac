import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import fc from "fast-check";
import { pack } from "tar-stream";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Assembly, framesOf } from "../../../provider/agent/moves/assembly.ts";
import { cut, makeRecipe, sealOf, type Format } from "../../../provider/agent/moves/recipe.ts";

let directory: string;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-recipe-"));
});
afterEach(() => rm(directory, { recursive: true }));

async function put(name: string, content: Buffer): Promise<string> {
  const path = join(directory, name);
  await writeFile(path, content);
  return path;
}

async function transfer(path: string, format: Format, known: string[] = []): Promise<{ sent: number; result: Buffer }> {
  const recipe = await makeRecipe("part", path, format);
  const assembly = new Assembly(join(directory, "out"));
  const missing = await assembly.begin(
    [recipe],
    known.map((source) => ({ path: source, format })),
  );
  let sent = 0;
  const frames = async function* () {
    for await (const one of framesOf(path, format, new Set(missing))) {
      sent += one.length;
      yield one;
    }
  };
  await assembly.receive(Readable.from(frames()));
  await assembly.seal([recipe]);
  return { sent, result: await readFile(assembly.partPath("part")) };
}

async function tarOf(files: Record<string, Buffer>): Promise<Buffer> {
  const archive = pack();
  for (const [name, content] of Object.entries(files)) archive.entry({ name, mtime: new Date(0) }, content);
  archive.finalize();
  const chunks: Buffer[] = [];
  for await (const chunk of archive as AsyncIterable<Buffer>) chunks.push(chunk);
  return Buffer.concat(chunks);
}

const noise = (bytes: number, seed: number): Buffer => {
  const buffer = Buffer.alloc(bytes);
  let value = seed;
  for (let index = 0; index < bytes; index++) buffer[index] = (value = (value * 1103515245 + 12345) & 0x7fffffff) >> 16;
  return buffer;
};

it("what has come of a file counts for another one of its name, wherever it stands there", async () => {
  const [kept, changed] = [noise(700_000, 1), noise(300_000, 2)];
  const before = await put("before.tar", await tarOf({ log: noise(10_000, 3), kept, changed }));
  const after = await put("after.tar", await tarOf({ log: noise(30_000, 4), kept, changed }));
  const assembly = new Assembly(join(directory, "out"));
  const first = await makeRecipe("part.tar", before, "tar");
  await assembly.receive(Readable.from(framesOf(before, "tar", new Set(await assembly.begin([first], [])))));
  const recipe = await makeRecipe("part.tar", after, "tar");
  const second = new Assembly(join(directory, "out"));
  const missing = new Set(await second.begin([recipe], []));
  const bytes = recipe.pieces.reduce((sum, [digest, length]) => sum + (missing.has(digest) ? length : 0), 0);
  expect(bytes).toBeLessThan(40_000);
  await second.receive(Readable.from(framesOf(after, "tar", missing)));
  await second.seal([recipe]);
  expect((await readFile(second.partPath("part.tar"))).equals(await readFile(after))).toBe(true);
  expect(await readdir(join(directory, "out"))).toEqual(["part.tar"]);
});

it("thousands of links in a row are not one piece", async () => {
  const archive = pack();
  for (let index = 0; index < 3000; index++) archive.entry({ name: `link-${index}`, type: "symlink", linkname: "there" });
  archive.entry({ name: "file" }, "content");
  archive.finalize();
  const path = await put("links.tar", await buffer(archive));
  const { sent, result } = await transfer(path, "tar");
  expect(sent).toBeGreaterThan(1_500_000);
  expect(result.equals(await readFile(path))).toBe(true);
});

describe("a recipe", () => {
  it("cuts any bytes, tar or not, into pieces that make up the file again", async () => {
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 200_000 }), fc.constantFrom<Format>("raw", "tar"), async (bytes, format) => {
        const path = await put("any", Buffer.from(bytes));
        const pieces: Buffer[] = [];
        for await (const piece of cut(path, format)) pieces.push(piece);
        expect(Buffer.concat(pieces).equals(Buffer.from(bytes))).toBe(true);
        expect(pieces.every((piece) => piece.length > 0)).toBe(true);
      }),
      { numRuns: 60 },
    );
  });

  it("sends nothing for holes", async () => {
    const path = await put("disk", Buffer.concat([Buffer.alloc(640 * 1024), noise(1000, 1)]));
    const { sent, result } = await transfer(path, "raw");
    expect(sent).toBeLessThan(1100);
    expect(result.equals(await readFile(path))).toBe(true);
  });

  it("finds a file of the base inside an archive whose order and headers differ", async () => {
    const big = noise(700_000, 2);
    const base = await put("base.tar", await tarOf({ "rootfs/a": noise(100, 3), "rootfs/bin/app": big }));
    const archive = await put(
      "export.tar",
      await tarOf({ "backup/index": noise(50, 4), "backup/rootfs/bin/app": big, "backup/rootfs/state": noise(9, 5) }),
    );
    const { sent, result } = await transfer(archive, "tar", [base]);
    expect(sent).toBeLessThan(6000);
    expect(result.equals(await readFile(archive))).toBe(true);
  });

  it("sends again only what an interrupted transfer had not written", async () => {
    const path = await put("disk", noise(1024 * 1024, 6));
    const recipe = await makeRecipe("part", path, "raw");
    const first = new Assembly(join(directory, "out"));
    const missing = await first.begin([recipe], []);
    const half = missing.slice(0, 8);
    await first.receive(Readable.from(framesOf(path, "raw", new Set(half))));

    const second = new Assembly(join(directory, "out"));
    expect(await second.begin([recipe], [])).toEqual(missing.slice(8));
  });

  it("refuses a damaged piece, and a file that does not come out as announced", async () => {
    const path = await put("disk", noise(100_000, 7));
    const recipe = await makeRecipe("part", path, "raw");
    const assembly = new Assembly(join(directory, "out"));
    const missing = await assembly.begin([recipe], []);
    const frames: Buffer[] = [];
    for await (const one of framesOf(path, "raw", new Set(missing))) frames.push(one);
    const damaged = Buffer.concat(frames);
    damaged[damaged.length - 1] = (damaged[damaged.length - 1] ?? 0) ^ 1;
    await expect(assembly.receive(Readable.from([damaged]))).rejects.toMatchObject({ code: "INTEGRITY" });
    await expect(assembly.seal([recipe])).rejects.toMatchObject({ code: "INTEGRITY" });
  });

  it("seals to the same name only for the same content", async () => {
    const one = await makeRecipe("a", await put("one", noise(10, 8)), "raw");
    const two = await makeRecipe("a", await put("two", noise(10, 9)), "raw");
    expect(sealOf([one])).toBe(sealOf([{ ...one }]));
    expect(sealOf([one])).not.toBe(sealOf([two]));
  });
});
