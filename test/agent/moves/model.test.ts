import { describe, expect, it } from "vitest";
import { explore, leading, offenders } from "./explore.ts";
import { next, start, type State } from "./protocol.ts";

describe("the ownership protocol, with every crash, lost and repeated message", () => {
  const explored = explore(start, (state) => next(state, { writes: 1, faults: 2 }));

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
      const good = leading(explored, wished, (name) => !/^(kill|pull)/.test(name));
      expect(offenders(explored, (_state, key) => !good.has(key))).toEqual([]);
    }
  });
});
