import { describe, expect, it } from "vitest";
import { explore, leading, offenders, type Explored } from "./explore.ts";
import { allRules, isAsked, isFault, next, startWith, type Bounds, type Live, type Rules } from "./liveProtocol.ts";

const running = ({ source, targets }: Live): number => [source, ...targets].filter(({ qemu }) => qemu === "running").length;

const wrongs = {
  "two running copies": (state: Live) => running(state) > 1,
  "two owners": ({ source, targets }: Live) => [source, ...targets].filter(({ role }) => role === "owner").length > 1,
  "a running copy that lacks an acknowledged write": ({ source, targets, acknowledged }: Live) =>
    [source, ...targets].some(({ qemu, data }) => qemu === "running" && data !== acknowledged),
  "no copy that has every acknowledged write": ({ source, targets, acknowledged, deleted }: Live) =>
    !deleted && [source, ...targets].every(({ data }) => data !== acknowledged),
  "a copy that runs after all was deleted": (state: Live) => state.deleted && running(state) > 0,
};

const exploreLive = (targets: number, bounds: Omit<Bounds, "rules">, rules: Rules = allRules): Explored<Live> =>
  explore(startWith(targets), (state) => next(state, { ...bounds, rules }));

const oneRuns = (state: Live): boolean => running(state) === 1 || state.deleted;
const hasMoved = ({ source, targets, deleted }: Live): boolean =>
  deleted || (source.qemu === "none" && targets.some(({ qemu, phase }) => qemu === "running" && phase === "ready"));
const byItself = (name: string): boolean => !isFault(name) && !isAsked(name);

function stuck(explored: Explored<Live>, wished: (state: Live) => boolean, allowed: (name: string) => boolean): string[] {
  const good = leading(explored, wished, allowed);
  return offenders(explored, (_state, key) => !good.has(key));
}

describe.each([
  ["two faults", exploreLive(1, { writes: 1, faults: 2, underWay: 1, rounds: true })],
  ["messages that overtake each other", exploreLive(1, { writes: 1, faults: 0, underWay: 2, rounds: true })],
  ["a second target that is asked for meanwhile, and a fault", exploreLive(2, { writes: 0, faults: 1, underWay: 1, rounds: false })],
])("a live move with %s", (_what, explored) => {
  it("is explored", () => {
    expect(explored.states.size).toBeGreaterThan(10_000);
  });

  it.each(Object.entries(wrongs))("never has %s", (_name, wrong) => {
    expect(offenders(explored, wrong)).toEqual([]);
  });

  it("always has a way to one running copy, without anybody asking for anything", () => {
    expect(stuck(explored, oneRuns, byItself)).toEqual([]);
  });

  it("always has a way to its end, where somebody asks again", () => {
    expect(stuck(explored, hasMoved, (name) => !isFault(name))).toEqual([]);
  });
});

it.each<[keyof Rules, keyof typeof wrongs, number, number]>([
  ["onePeer", "two running copies", 2, 1],
  ["ownsBeforeRunning", "a running copy that lacks an acknowledged write", 1, 1],
  ["givesUpUnstarted", "a running copy that lacks an acknowledged write", 1, 1],
  ["oneStream", "a running copy that lacks an acknowledged write", 1, 2],
  ["releasesFirst", "two running copies", 1, 1],
])("without the rule %s the model finds %s", (...[rule, what, targets, underWay]) => {
  const bounds = {
    writes: rule === "onePeer" ? 0 : 1,
    faults: rule === "givesUpUnstarted" ? 1 : 0,
    underWay,
    rounds: rule === "oneStream",
  };
  expect(offenders(exploreLive(targets, bounds, { ...allRules, [rule]: false }), wrongs[what])).not.toEqual([]);
});

it("without the rule givesUpForGood the source may wait for an answer that nobody can give", () => {
  const explored = exploreLive(1, { writes: 0, faults: 0, underWay: 1, rounds: false }, { ...allRules, givesUpForGood: false });
  expect(stuck(explored, oneRuns, byItself)).not.toEqual([]);
});
