import fc from "fast-check";
import { expect, it } from "vitest";
import { splitBy, type Piece } from "../../../../provider/hypervisors/qemu/live/diskRounds.ts";

const unit = 4096;
const sector = 512;

/** Pieces in order, in units of so many bytes. */
function pieces(of: number): fc.Arbitrary<Piece[]> {
  const steps = fc.array(fc.tuple(fc.nat(20), fc.integer({ min: 1, max: 20 })), { maxLength: 12 });
  return steps.map((gaps) => {
    let at = 0;
    return gaps.map(([gap, length]) => {
      const offset = at + gap * of;
      at = offset + length * of;
      return { offset, length: length * of };
    });
  });
}

function unitsIn(list: readonly Piece[]): number[] {
  return list.flatMap(({ offset, length }) => Array.from({ length: length / unit }, (_, at) => offset / unit + at));
}

it("splits what changed into whole units that are known to be zeros and all others, and loses nothing", () => {
  fc.assert(
    fc.property(pieces(unit), pieces(sector), (mine, zeros) => {
      const { there, empty } = splitBy(mine, zeros);
      const known = unitsIn(mine).filter((at) =>
        zeros.some(({ offset, length }) => offset <= at * unit && (at + 1) * unit <= offset + length),
      );
      expect(unitsIn(empty)).toEqual(known);
      expect([...unitsIn(there), ...unitsIn(empty)].sort((a, b) => a - b)).toEqual(unitsIn(mine));
    }),
  );
});
