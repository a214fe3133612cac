import { mkdtemp, open, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { expect, it } from "vitest";
import { readBlocks } from "../../provider/synthesis/blockReader.ts";

it("blocks come from wherever they are, in any order, with zeros behind the end of a file", async () => {
  const directory = await mkdtemp(path.join(tmpdir(), "blocks-"));
  const block = (n: number): Buffer => Buffer.alloc(4096, `${String(n)} `);
  // the second file ends within its last block
  const contents = [
    Buffer.concat(Array.from({ length: 40 }, (_, n) => block(n))),
    Buffer.concat([block(100), block(101).subarray(0, 100)]),
  ];
  const handles = await Promise.all(
    contents.map(async (content, number) => {
      await writeFile(path.join(directory, String(number)), content);
      return open(path.join(directory, String(number)), "r");
    }),
  );
  const sources = Uint8Array.from({ length: 42 }, (_, n) => (n < 40 ? 0 : 1));
  const blocks = Uint32Array.from({ length: 42 }, (_, n) => (n < 40 ? n : n - 40));
  const expected = (n: number): Buffer =>
    n < 40 ? block(n) : n === 40 ? block(100) : Buffer.concat([block(101).subarray(0, 100), Buffer.alloc(3996)]);
  const check = async (numbers: number[]): Promise<void> => {
    const read = await readBlocks({ handles, sources, blocks }, Uint32Array.from(numbers));
    expect(read.equals(Buffer.concat(numbers.map(expected)))).toBe(true);
  };
  const orders = fc.oneof(fc.array(fc.nat(41)), fc.subarray(Array.from({ length: 42 }, (_, n) => n)));
  await fc.assert(fc.asyncProperty(orders, check)).finally(async () => {
    await Promise.all(handles.map((handle) => handle.close()));
    await rm(directory, { recursive: true });
  });
});
