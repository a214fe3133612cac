import { describe, expect, it } from "vitest";
import { defaultBudget } from "../../provider/agent/handoffProtocol.ts";
import { explainMove } from "../../provider/resources/cloudlet/move.ts";

const report = { from: "gw0", to: "gw1", route: "direct", bytesAvoided: 0, totalMillis: 9_000, downtimeMillis: 400 } as const;
const running = { hypervisor: "gw1/kvm", state: "running" } as const;
const there = { hypervisor: "gw2/kvm", handoff: { ...defaultBudget, preseed: [] } };
const preseeded = [{ hypervisor: "gw2/kvm", bytesTransferred: 16_000_000, bytesAvoided: 0, totalMillis: 9_000 }];

describe("what a preview says of a move", () => {
  it.each([
    ["nothing where it stays", running, { hypervisor: "gw1/kvm" }, undefined],
    ["nothing while the node is unknown", running, {}, undefined],
    [
      "that it runs on",
      running,
      there,
      /from gw1 to gw2 \(live\): it runs while it is copied, then pauses for 1000 ms at most, slowed down before/,
    ],
    [
      "about how much, from its last move",
      { ...running, lastMove: { ...report, mode: "live", bytesSent: 65_400_001 } },
      there,
      /\(live, about 66 MB\)/,
    ],
    [
      "that the target has its base, which is not sent then",
      { ...running, preseeded, lastMove: { ...report, mode: "live", bytesSent: 65_400_001, bytesSupplied: 15_000_000 } },
      there,
      /\(live, at most 51 MB\): .* goes on at gw2; its base is there already$/,
    ],
    [
      "about how much, with the base, where the target is not preseeded",
      { ...running, lastMove: { ...report, mode: "live", bytesSent: 65_400_001, bytesSupplied: 15_000_000 } },
      there,
      /\(live, about 66 MB\)/,
    ],
    [
      "nothing of a node that has it, where it goes to another",
      { ...running, preseeded },
      { ...there, hypervisor: "gw3/kvm" },
      /goes on at gw3$/,
    ],
    [
      "nothing about how much, where that one was cold",
      { ...running, lastMove: { ...report, mode: "cold", bytesSent: 9 } },
      there,
      /\(live\)/,
    ],
    ["that it may stay", running, { ...there, handoff: { ...there.handoff, onExceeded: "abort" } }, /1000 ms at most or stays where it is/],
    [
      "that it may take longer",
      running,
      { ...there, handoff: { ...there.handoff, onExceeded: "proceed" } },
      /for 1000 ms if that can be kept/,
    ],
    [
      "why it is not live: it does not run",
      { ...running, state: "suspended" },
      there,
      /\(cold, as it is suspended\): it stops, what gw2 lacks/,
    ],
    [
      "why it is not live: a container",
      { hypervisor: "gw1/lxd" },
      { hypervisor: "gw2/lxd" },
      /\(cold, as a cloudlet of kind lxd moves only while .*\): it is copied while it runs, then it stops, what gw2 still lacks/,
    ],
    [
      "why it is not live: another kind",
      running,
      { hypervisor: "gw2/lxd" },
      /\(cold, as kvm and lxd have no .* its state files and volumes are sent/,
    ],
  ] as const)("%s", (...[, old, want, text]) => {
    const said = explainMove(want, old);
    if (text === undefined) expect(said).toBeUndefined();
    else expect(said).toMatch(text);
  });
});
