import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { defaultBudget, type Budget, type Decision } from "../../../provider/agent/handoffProtocol.ts";
import { chooseLevel, paceAt, type Pace } from "../../../provider/agent/moves/compressionLevels.ts";
import { decide, type Measurements } from "../../../provider/agent/moves/controller.ts";
import { measurements, simulate, type World } from "./simulatedMove.ts";

const budget = (change: Partial<Budget> = {}): Budget => ({ ...defaultBudget, ...change });
const MB = 1e6;

interface Row {
  what: string;
  measured: Measurements;
  budget?: Partial<Budget>;
  then: Partial<Decision>;
  because: RegExp;
}

const rows: Row[] = [
  {
    what: "nothing was sent yet",
    measured: measurements([], { remaining: { memoryBytes: 60 * MB, diskBytes: 20 * MB } }),
    then: { action: "round" },
    because: /nothing was measured yet/,
  },
  {
    what: "nothing was sent yet, and the link is known",
    measured: measurements([], { remaining: { memoryBytes: 60 * MB, diskBytes: 20 * MB }, linkBytesPerSecond: 4 * MB }),
    then: { action: "round", predictedTotalMillis: 9_500, predictedDowntimeMillis: 300 },
    because: /everything that differs/,
  },
  {
    what: "the guest is idle",
    measured: measurements([[72 * MB, 63 * MB, 50_000, 0.05 * MB]]),
    then: { action: "stop", predictedTotalMillis: 50_335, predictedDowntimeMillis: 335 },
    because: /the pause takes 335 ms, and 1000 ms are allowed/,
  },
  {
    what: "2 MB/s are changed over a link of 10 Mbit/s, after the first round",
    measured: measurements([[72 * MB, 63 * MB, 50_400, 10 * MB]]),
    then: { action: "round" },
    because: /another round makes the pause 1272 ms instead of 7300 ms/,
  },
  {
    what: "the same 2.2 MB are changed again and again, as in three rounds of 63, 2.2 and 2.2 MB",
    measured: measurements([
      [72 * MB, 63 * MB, 50_400, 2.2 * MB],
      [2.2 * MB, 2 * MB, 1_600, 2.2 * MB],
      [2.2 * MB, 2 * MB, 1_600, 2.15 * MB],
    ]),
    then: { action: "throttle", throttlePercent: 55 },
    because: /1871 ms where 1000 ms are allowed, and the guest changes memory as fast as it is sent; it is slowed down by 55 %/,
  },
  {
    what: "the same, and nobody minds",
    measured: measurements([
      [72 * MB, 63 * MB, 50_400, 2.2 * MB],
      [2.2 * MB, 2 * MB, 1_600, 2.2 * MB],
    ]),
    budget: { onExceeded: "proceed" },
    then: { action: "stop", throttlePercent: 0 },
    because: /goes on all the same/,
  },
  {
    what: "the same, and it is too much",
    measured: measurements([
      [72 * MB, 63 * MB, 50_400, 2.2 * MB],
      [2.2 * MB, 2 * MB, 1_600, 2.2 * MB],
    ]),
    budget: { onExceeded: "abort" },
    then: { action: "abort" },
    because: /1000 ms are allowed/,
  },
  {
    what: "the first round shows that the link is far too slow",
    measured: measurements([[72 * MB, 63 * MB, 50_400, 10 * MB]], {
      ...{ rounds: [], elapsedMillis: 20_000, remaining: { memoryBytes: 70 * MB, diskBytes: 0 } },
      current: measurements([[2 * MB, 2 * MB, 20_000, 0]]).rounds[0],
    }),
    budget: { onExceeded: "abort", maxTotalSeconds: 120 },
    then: { action: "abort" },
    because: /the move takes 720 s, and 120 s are allowed/,
  },
  {
    what: "the same after half a second, which says nothing",
    measured: measurements([], {
      ...{ elapsedMillis: 500, remaining: { memoryBytes: 70 * MB, diskBytes: 0 } },
      current: measurements([[50_000, 50_000, 500, 0]]).rounds[0],
    }),
    budget: { onExceeded: "abort", maxTotalSeconds: 120 },
    then: { action: "round" },
    because: /the round goes on/,
  },
  {
    what: "the pause is too long even with nothing to send",
    measured: measurements([[72 * MB, 63 * MB, 50_400, 5 * MB]], { pauseMillis: 1_500 }),
    then: { action: "round" },
    because: /another round/,
  },
  {
    what: "that, and the guest is busy: slowing it down would be in vain",
    measured: measurements([[72 * MB, 63 * MB, 50_400, 70 * MB]], { pauseMillis: 1_500 }),
    then: { action: "stop", throttlePercent: 0 },
    because: /goes on all the same/,
  },
  {
    what: "reading all memory took long and little was sent, as on a return: the link is not slow for that",
    measured: measurements([[MB, MB / 2, 6_000, 8 * MB]], {
      rounds: measurements([[MB, MB / 2, 6_000, 8 * MB]]).rounds.map((round) => ({ ...round, linkMillis: 20 })),
    }),
    then: { action: "round", throttlePercent: 0 },
    because: /instead of 2631 ms/,
  },
  {
    what: "a link that has become five times slower is judged by its last rounds",
    measured: measurements([
      [72 * MB, 63 * MB, 50_000, 10 * MB],
      [10 * MB, 9 * MB, 36_000, 8 * MB],
    ]),
    budget: { maxTotalSeconds: 100, onExceeded: "proceed" },
    then: { action: "stop", predictedDowntimeMillis: 29_100 },
    because: /29100 ms/,
  },
];

describe("what is decided", () => {
  it.each(rows)("when $what", ({ measured, budget: change, then, because }) => {
    const decision = decide(budget(change), measured);
    expect(decision).toMatchObject(then);
    expect(decision.reason).toMatch(because);
  });

  it("is the same for the same measurements", () => {
    for (const { measured, budget: change } of rows) expect(decide(budget(change), measured)).toEqual(decide(budget(change), measured));
  });
});

describe("the level of compression", () => {
  const memory = (linkMbit: number): Pace => ({
    linkBytesPerMillis: linkMbit * 125,
    sample: { level: 3, sizeRatio: 0.4, bytesPerMillis: 200_000 },
  });
  it.each([
    ["the highest on a link that is slower than that", 2, 1, 19],
    ["a high one at 5 Mbit/s on an idle processor", 5, 1, 9],
    ["a medium one at 100 Mbit/s", 100, 1, 6],
    ["a lower one at 400 Mbit/s", 400, 1, 3],
    ["the lowest at 10 Gbit/s", 10_000, 1, 1],
    ["a lower one where the guests need the processor", 100, 0.3, 3],
  ])("is %s", (...[, linkMbit, share, level]) => {
    expect(chooseLevel(memory(linkMbit), { share })).toBe(level);
  });

  it("promises no level that leaves next to nothing of what shrinks well already", () => {
    const pace: Pace = { linkBytesPerMillis: 10, sample: { level: 3, sizeRatio: 0.027, bytesPerMillis: 600_000 } };
    expect(paceAt(9, pace, { share: 1 })).toBeLessThan(1.3 * paceAt(3, pace, { share: 1 }));
  });

  it("is the lowest for what cannot be compressed", () => {
    expect(chooseLevel({ linkBytesPerMillis: 625, sample: { level: 3, sizeRatio: 1, bytesPerMillis: 200_000 } }, { share: 1 })).toBe(1);
  });

  it("keeps the compression ahead of the link, whatever link and processor, unless it is the lowest", () => {
    fc.assert(
      fc.property(fc.double({ min: 10, max: 1e6, noNaN: true }), fc.double({ min: 0.05, max: 1, noNaN: true }), (link, share) => {
        const pace: Pace = { linkBytesPerMillis: link, sample: { level: 1, sizeRatio: 0.4, bytesPerMillis: 300_000 } };
        const level = chooseLevel(pace, { share });
        const alone = paceAt(level, { ...pace, linkBytesPerMillis: 1e12 }, { share });
        return level === 1 || alone >= paceAt(level, pace, { share }) * 1.29;
      }),
    );
  });
});

const worlds: fc.Arbitrary<World> = fc.record({
  // less says nothing of the link, and no guest is so small
  bytes: fc.integer({ min: 1e6, max: 8e9 }),
  linkBytesPerSecond: fc.integer({ min: 10_000, max: 2e9 }),
  sizeRatio: fc.double({ min: 0.01, max: 1, noNaN: true }),
  compressBytesPerSecond: fc.integer({ min: 5e6, max: 1e9 }),
  idleProcessors: fc.double({ min: 0, max: 8, noNaN: true }),
  writtenBytesPerSecond: fc.integer({ min: 0, max: 1e9 }),
  workingSetBytes: fc.integer({ min: 4096, max: 4e9 }),
  pauseMillis: fc.integer({ min: 0, max: 3_000 }),
});
const budgets: fc.Arbitrary<Budget> = fc.record({
  maxDowntimeMillis: fc.integer({ min: 1, max: 60_000 }),
  maxTotalSeconds: fc.integer({ min: 1, max: 3_600 }),
  onExceeded: fc.constantFrom("throttle", "proceed", "abort"),
});

describe("a whole move", () => {
  const guest: World = {
    ...{ bytes: 72 * MB, sizeRatio: 0.9, compressBytesPerSecond: 200 * MB, idleProcessors: 1 },
    ...{ writtenBytesPerSecond: 2 * MB, workingSetBytes: 3 * MB, pauseMillis: 400, linkBytesPerSecond: 0 },
  };

  it.each([
    [5, 6],
    [10, 5],
    [25, 3],
    [100, 3],
    [10_000, 2],
  ])("of a guest that changes 2 MB/s over %i Mbit/s keeps its budget in %i rounds", (mbit, rounds) => {
    const outcome = simulate({ ...guest, linkBytesPerSecond: mbit * 125_000 }, budget());
    expect(outcome.end).toBe("paused");
    expect(outcome.downtimeMillis).toBeLessThanOrEqual(1_000);
    expect(outcome.rounds.length).toBeLessThanOrEqual(rounds);
    const sent = (guest.bytes * guest.sizeRatio) / (mbit * 125);
    expect(outcome.totalMillis).toBeLessThan(sent * 1.15 + 2_000);
  });

  it("ends, whatever guest, link and budget", () => {
    fc.assert(
      fc.property(worlds, budgets, (world, given) => {
        const { end, decisions } = simulate(world, given);
        expect(end).not.toBe("endless");
        expect(decisions.length).toBeLessThan(50);
      }),
    );
  });

  it("is given up only where that was asked for", () => {
    fc.assert(
      fc.property(worlds, budgets, (world, given) => {
        const { end } = simulate(world, given);
        return given.onExceeded === "abort" || end === "paused";
      }),
    );
  });

  it("keeps the budget where nothing is throttled and that is all that ends it", () => {
    fc.assert(
      fc.property(worlds, budgets, (world, given) => {
        const { end, downtimeMillis } = simulate(world, { ...given, onExceeded: "abort" });
        // the processor's share and the saving of a level are estimates
        return end === "aborted" || downtimeMillis <= given.maxDowntimeMillis * 2 + 5;
      }),
    );
  });

  it("slows the guest down only where that was asked for, and never less and less", () => {
    fc.assert(
      fc.property(worlds, budgets, (world, given) => {
        const steps = simulate(world, given).decisions.map(({ throttlePercent }) => throttlePercent);
        expect([...steps].sort((a, b) => a - b)).toEqual(steps);
        expect(Math.max(...steps)).toBeLessThanOrEqual(given.onExceeded === "throttle" ? 95 : 0);
      }),
    );
  });
});

it("what is predicted grows with what remains", () => {
  const more = fc.tuple(fc.integer({ min: 0, max: 1e9 }), fc.integer({ min: 1, max: 1e9 }));
  fc.assert(
    fc.property(more, fc.integer({ min: 10_000, max: 1e9 }), budgets, ([few, extra], bytes, given) => {
      const [less, greater] = [few, few + extra].map((memoryBytes) =>
        decide(given, measurements([[2 * bytes, bytes, 10_000, memoryBytes]], { remaining: { memoryBytes, diskBytes: 0 } })),
      );
      if (less?.action !== "stop" || greater?.action !== "stop") return;
      expect(greater.predictedTotalMillis).toBeGreaterThanOrEqual(less.predictedTotalMillis ?? Infinity);
      expect(greater.predictedDowntimeMillis).toBeGreaterThanOrEqual(less.predictedDowntimeMillis ?? Infinity);
    }),
  );
});
