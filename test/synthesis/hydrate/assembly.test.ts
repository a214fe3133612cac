import { randomBytes } from "node:crypto";
import fc from "fast-check";
import { expect, it } from "vitest";
import { Assembly } from "../../../provider/synthesis/hydrate/assembly.ts";
import type { Range } from "../../../provider/synthesis/hydrate/rangeConnection.ts";
import type { Chunk } from "../../../provider/synthesis/manifest.ts";

function chunksOf(sizes: number[]): Chunk[] {
  let offset = 0;
  return sizes.map((bytes) => ({ offset: (offset += bytes) - bytes, bytes, rawBytes: bytes, digest: "0".repeat(64) }));
}

const all = (chunks: Chunk[]): number[] => [...chunks.keys()];

it("asks in the order of the pack, over the borders of chunks, and leaves out what is here", () => {
  const assembly = new Assembly(chunksOf([10, 10, 10, 10]), [0, 1, 3]);
  const ranges = [1, 2, 3, 4].map(() => assembly.next(15));
  expect(ranges).toEqual([{ offset: 0, bytes: 15 }, { offset: 15, bytes: 5 }, { offset: 30, bytes: 10 }, undefined]);
});

it("asks for what is urgent before everything else, first come first served, and only for what was not asked for before", () => {
  const chunks = chunksOf([100, 100, 100, 100]);
  const assembly = new Assembly(chunks, all(chunks));
  expect(assembly.next(130)).toEqual({ offset: 0, bytes: 130 });
  for (const chunk of [3, 1, 3]) assembly.urge(chunk);
  expect(assembly.isUrgent).toBe(true);
  const ranges = [1, 2, 3, 4].map(() => assembly.next(64));
  expect(ranges).toEqual([
    { offset: 300, bytes: 64 },
    { offset: 364, bytes: 36 },
    { offset: 130, bytes: 64 },
    { offset: 194, bytes: 6 },
  ]);
  expect(assembly.isUrgent).toBe(false);
  expect(assembly.next(1000)).toEqual({ offset: 200, bytes: 100 });
  expect(assembly.next(1000)).toBeUndefined();
});

it("keeps the beginning of a chunk only where the same node sends the rest", () => {
  const assembly = new Assembly(chunksOf([100]), [0]);
  assembly.next(60);
  expect(assembly.received(0, Buffer.alloc(40))).toEqual([]);
  assembly.lost(true);
  expect(assembly.next(1000)).toEqual({ offset: 40, bytes: 60 });
  assembly.lost(false);
  expect(assembly.next(1000)).toEqual({ offset: 0, bytes: 100 });
});

it("makes every missing chunk whole exactly once, with its own bytes, whatever happens on the way", () => {
  const sizes = fc.array(fc.integer({ min: 1, max: 300 }), { minLength: 1, maxLength: 12 });
  const events = fc.infiniteStream(fc.record({ what: fc.nat(9), where: fc.nat(11), most: fc.integer({ min: 1, max: 400 }) }));
  fc.assert(
    fc.property(sizes, fc.nat(4095), events, (bytes, mask, happening) => {
      const chunks = chunksOf(bytes);
      const missing = all(chunks).filter((chunk) => (mask & (1 << chunk)) === 0);
      const pack = randomBytes(bytes.reduce((sum, size) => sum + size, 0));
      const assembly = new Assembly(chunks, missing);
      const asked: Range[] = [];
      const whole: number[] = [];
      let rejected = 0;
      for (const { what, where, most } of happening) {
        if (whole.length === missing.length) break;
        if (what === 0) assembly.urge(where);
        else if (what === 1) {
          asked.length = 0;
          assembly.lost(most % 2 === 0);
        } else if (what < 6) {
          const range = assembly.next(most);
          if (range !== undefined) asked.push(range);
          expect(range?.bytes ?? 1).toBeLessThanOrEqual(most);
        } else {
          const [first] = asked;
          if (first === undefined) continue;
          const count = Math.min(first.bytes, most);
          for (const made of assembly.received(first.offset, pack.subarray(first.offset, first.offset + count))) {
            const { offset = 0, bytes: size = 0 } = chunks[made.chunk] ?? {};
            expect(made.bytes.equals(pack.subarray(offset, offset + size))).toBe(true);
            if (rejected++ < 2) assembly.again(made.chunk);
            else whole.push(made.chunk);
          }
          if (count === first.bytes) asked.shift();
          else asked[0] = { offset: first.offset + count, bytes: first.bytes - count };
        }
      }
      expect(whole.toSorted((a, b) => a - b)).toEqual(missing);
    }),
  );
});
