import { describe, expect, it } from "vitest";
import { next, start, type Bounds, type State } from "./protocol.ts";

interface Explored {
  states: Map<string, State>;
  /** For each state, those from which one step leads there. */
  before: Map<string, string[]>;
  /** How a state was first reached. */
  way: Map<string, [string, string]>;
}

const keyOf = (state: State): string => JSON.stringify(state);

function explore(bounds: Bounds): Explored {
  const explored: Explored = { states: new Map([[keyOf(start), start]]), before: new Map(), way: new Map() };
  for (const [key, state] of explored.states) {
    for (const [name, reached] of next(state, bounds)) {
      const to = keyOf(reached);
      const before = explored.before.get(to);
      if (before === undefined) explored.before.set(to, [key]);
      else before.push(key);
      if (explored.states.has(to)) continue;
      explored.states.set(to, reached);
      explored.way.set(to, [key, name]);
    }
  }
  return explored;
}

/** The shortest story that leads to a state, for the message of a failure. */
function story({ way }: Explored, key: string): string {
  const names: string[] = [];
  for (let at = way.get(key); at !== undefined; at = way.get(at[0])) names.unshift(at[1]);
  return names.join(", ");
}

function offenders(explored: Explored, wrong: (state: State) => boolean): string[] {
  return [...explored.states]
    .filter(([, state]) => wrong(state))
    .map(([key]) => story(explored, key))
    .slice(0, 3);
}

/** States from which some way leads to one that is as wished. */
function leading(explored: Explored, wished: (state: State) => boolean): Set<string> {
  const found = new Set([...explored.states].filter(([, state]) => wished(state)).map(([key]) => key));
  for (const key of found) for (const earlier of explored.before.get(key) ?? []) found.add(earlier);
  return found;
}

describe("the ownership protocol, with every crash, lost and repeated message", () => {
  const explored = explore({ writes: 1, faults: 2 });

  it("explores all of it", () => {
    expect(explored.states.size).toBeGreaterThan(10_000);
  });

  it("never has two running copies", () => {
    expect(offenders(explored, ({ source, target }) => source.guest === "running" && target.guest === "running")).toEqual([]);
  });

  it("never has two owners", () => {
    expect(offenders(explored, ({ source, target }) => source.role === "owner" && target.role === "owner")).toEqual([]);
  });

  it("never runs a copy that lacks an acknowledged write", () => {
    const stale = ({ guest, data }: { guest: string; data: number }, acknowledged: number): boolean =>
      guest === "running" && data !== acknowledged;
    expect(offenders(explored, ({ source, target, acknowledged }) => stale(source, acknowledged) || stale(target, acknowledged))).toEqual(
      [],
    );
  });

  it("never loses the last copy of an acknowledged write", () => {
    expect(offenders(explored, ({ source, target, acknowledged }) => source.data !== acknowledged && target.data !== acknowledged)).toEqual(
      [],
    );
  });

  it("always has a way to one running copy, and to the end of the move, without any further fault", () => {
    for (const wished of [
      ({ source, target }: State) => source.guest === "running" || target.guest === "running",
      ({ source, target }: State) => source.guest === "none" && target.guest === "running",
    ]) {
      const good = leading(explored, wished);
      expect(
        [...explored.states.keys()]
          .filter((key) => !good.has(key))
          .map((key) => story(explored, key))
          .slice(0, 3),
      ).toEqual([]);
    }
  });
});
