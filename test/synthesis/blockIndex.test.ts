import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { decodeIndex, encodeIndex, maxIndexBytes, zeroBlock } from "../../provider/synthesis/blockIndex.ts";

const blocksOfImage = 5000;

const marks = fc.array(fc.boolean(), { maxLength: 200 });

/** Images whose blocks take every block of the pack at least once, in any order. */
const images = fc
  .array(fc.uniqueArray(fc.nat(blocksOfImage - 1), { maxLength: 60 }), { minLength: 1, maxLength: 2 })
  .chain((blocks) => {
    const total = blocks.reduce((sum, { length }) => sum + length, 0);
    return fc.tuple(fc.constant(blocks), fc.array(fc.option(fc.nat(40)), { minLength: total, maxLength: total }));
  })
  .map(([blocks, wanted]) => {
    const names = [...new Set(wanted.filter((value) => value !== null))];
    let next = 0;
    return {
      storedBlocks: names.length,
      images: blocks.map((list) => ({
        blocks: Uint32Array.from(list.sort((a, b) => a - b)),
        stored: Uint32Array.from(list, () => {
          const value = wanted[next++] ?? null;
          return value === null ? zeroBlock : names.indexOf(value);
        }),
      })),
    };
  });

const boundsOf = (made: { blocks: Uint32Array }[], storedBlocks: number) => ({
  images: made.map(({ blocks }, position) => ({ name: `image ${String(position)}`, blocks: blocks.length, blocksOfImage })),
  storedBlocks,
});

describe("the index of an overlay", () => {
  it("comes back as it was", () => {
    fc.assert(
      fc.property(images, marks, ({ images: made, storedBlocks }, marked) => {
        const differences = Uint8Array.from({ length: storedBlocks }, (_, block) => Number(marked[block] ?? false));
        const bytes = encodeIndex(made, differences);
        expect(bytes.length).toBeLessThanOrEqual(maxIndexBytes(made.reduce((sum, { blocks }) => sum + blocks.length, 0)));
        expect(decodeIndex(bytes, boundsOf(made, storedBlocks))).toEqual({ images: made, differences });
      }),
    );
  });

  it("is refused, never misread, whatever its bytes are", () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 40 }), fc.nat(6), fc.nat(6), (bytes, blocks, storedBlocks) => {
        const bounds = { images: [{ name: "disk", blocks, blocksOfImage: 100 }], storedBlocks };
        try {
          const decoded = decodeIndex(Buffer.from(bytes), bounds);
          const [image] = decoded.images;
          expect(decoded.differences).toHaveLength(storedBlocks);
          // there is one way only to write it
          expect(encodeIndex(decoded.images, decoded.differences).length).toBeLessThanOrEqual(bytes.length);
          for (const block of image?.blocks ?? []) expect(block).toBeLessThan(100);
          for (const block of image?.stored ?? []) if (block !== zeroBlock) expect(block).toBeLessThan(storedBlocks);
        } catch (error) {
          expect(error).toMatchObject({ code: "INVALID" });
        }
      }),
    );
  });
});
