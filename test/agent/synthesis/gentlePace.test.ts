import { describe, expect, it } from "vitest";
import { GentlePace } from "../../../provider/agent/synthesis/gentlePace.ts";

interface Link {
  bytesPerMilli: number;
  delayMillis: number;
}

/** Takes so many bytes over a link on which everything else takes `queueMillis` before each piece; returns the time and what the pieces were. */
function take(bytes: number, link: Link, queueMillis: (piece: number) => number = () => 0) {
  const pace = new GentlePace();
  const pieces: number[] = [];
  let [busy, total] = [0, 0];
  for (let left = bytes; left > 0;) {
    const piece = Math.min(left, pace.bytes);
    const firstMillis = link.delayMillis + queueMillis(pieces.length);
    const totalMillis = firstMillis + piece / link.bytesPerMilli;
    const rest = pace.took({ bytes: piece, firstMillis, totalMillis });
    pieces.push(piece);
    busy += piece / link.bytesPerMilli;
    total += totalMillis + rest;
    left -= piece;
  }
  return { busyShare: busy / total, totalMillis: total, pieces };
}

const mbit = (count: number): number => (count * 1e6) / 8 / 1000;
const megabytes = 1_000_000;

describe("the pace of what must not be in anybody's way", () => {
  it.each([
    [5, 5],
    [25, 5],
    [25, 50],
    [100, 5],
  ])("takes at most half of a link of %i Mbit/s with a delay of %i ms, and no more than 0.1 s of it at a time", (speed, delayMillis) => {
    const link = { bytesPerMilli: mbit(speed), delayMillis };
    const { busyShare, pieces } = take(20 * megabytes, link);
    expect(busyShare).toBeLessThanOrEqual(0.5);
    expect(busyShare).toBeGreaterThan(0.2);
    for (const piece of pieces) expect(piece / link.bytesPerMilli).toBeLessThan(100);
  });

  it("takes a fifth at most where its answers have to wait behind something else", () => {
    const link = { bytesPerMilli: mbit(5), delayMillis: 5 };
    const { busyShare, pieces } = take(4 * megabytes, link, (piece) => (piece === 0 ? 0 : 80));
    expect(busyShare).toBeLessThan(0.2);
    expect(Math.max(...pieces.slice(3))).toBe(32 * 1024);
  });

  it("is back to half once nobody else is there", () => {
    const link = { bytesPerMilli: mbit(25), delayMillis: 5 };
    const { busyShare, pieces } = take(40 * megabytes, link, (piece) => (piece > 0 && piece < 20 ? 100 : 0));
    expect(Math.max(...pieces.slice(30))).toBeGreaterThan(64 * 1024);
    expect(busyShare).toBeGreaterThan(0.3);
  });

  it("rests on the fastest link, too, as sending takes a processor", () => {
    const { totalMillis } = take(100 * megabytes, { bytesPerMilli: 500_000, delayMillis: 0.1 });
    expect((100 * megabytes) / totalMillis).toBeLessThan(60_000);
  });
});
