import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Outcome } from "../engine.ts";
import { openGateways, type GatewayName } from "../gateways.ts";
import { FaultBench, otherOf } from "./bench.ts";

/** Links that are cut, nodes that are gone, disks that are full, applications that do not answer. */
describe("during a move", () => {
  let bench: FaultBench;

  beforeAll(async () => {
    bench = new FaultBench(await openGateways("faultl", { lxd: ["gw1", "gw2"] }), "lxd");
    await bench.mustUp("gw1");
    await bench.expectWhole();
  });
  afterAll(() => bench?.gateways.close());

  /** From here to there, with something that happens as soon as the source has done a step. */
  async function upWith(step: string, strike: (from: GatewayName, to: GatewayName) => Promise<void>): Promise<Outcome> {
    const from = bench.at ?? "gw1";
    const to = otherOf(from);
    await bench.arm(from, { pauseAt: step });
    const since = new Date();
    const ending = bench.up(to);
    await bench.gateways.eventually(async () => expect(bench.steps(from, "move.run", since)).toContain(step), 60_000);
    await strike(from, to);
    return ending;
  }

  const told = (outcome: Outcome): string => /[^\n]*\[[A-Z_]+\]/.exec(outcome.text)?.[0].trim() ?? outcome.text;
  const downtime = (outcome: Outcome): number => (outcome.outputs["lastMove"] as { downtimeMillis: number }).downtimeMillis;

  it.each(["exported", "sent", "released"])("a link that is cut for three seconds after %s only costs time", async (step) => {
    const { lab } = bench.gateways;
    const outcome = await upWith(step, async () => {
      await lab.cutBetween("gw1", "gw2");
      await sleep(3_000);
      await bench.expectNoTwo();
      await lab.healBetween("gw1", "gw2");
    });
    expect(outcome.ok, outcome.text).toBe(true);
    await bench.expectWhole();
    console.log(`cut for 3 s after ${step}: away for ${downtime(outcome)} ms`);
  });

  it("a target that is cut off before the release leaves the application where it was, and the next run moves it", async () => {
    const { lab } = bench.gateways;
    const [from, to] = [bench.at ?? "gw1", otherOf(bench.at ?? "gw1")];
    const outcome = await upWith("exported", () => lab.cut(to));
    try {
      expect(outcome.ok).toBe(false);
      console.log(told(outcome));
      expect(outcome.text).toContain("UNREACHABLE");
      expect(outcome.text).toContain(to);
      await bench.expectWhole();
      expect(bench.at).toBe(from);
    } finally {
      await lab.heal(to);
    }
    await bench.mustUp(to);
    await bench.expectWhole();
  });

  it("a target that is cut off after the release leaves one stopped copy, and the next run starts it there", async () => {
    const { lab } = bench.gateways;
    const to = otherOf(bench.at ?? "gw1");
    const outcome = await upWith("released", () => lab.cut(to));
    try {
      expect(outcome.ok).toBe(false);
      console.log(told(outcome));
      expect(await bench.gateways.running("gw1")).toBe(0);
      expect(await bench.gateways.running("gw2")).toBe(0);
    } finally {
      await lab.heal(to);
    }
    await bench.mustUp(to);
    await bench.expectWhole();
  });

  it("nodes that cannot reach each other: the data goes through the operator", async () => {
    const { lab } = bench.gateways;
    await lab.cutBetween("gw1", "gw2");
    try {
      const outcome = await bench.mustUp(otherOf(bench.at ?? "gw1"));
      expect(outcome.outputs["lastMove"]).toMatchObject({ route: "operator" });
      await bench.expectWhole();
      console.log(`through the operator: away for ${downtime(outcome)} ms`);
    } finally {
      await lab.healBetween("gw1", "gw2");
    }
  });

  it.each(["source", "target"])("a %s that is unreachable from the beginning is named, and nothing changes", async (end) => {
    const { lab } = bench.gateways;
    const [from, to] = [bench.at ?? "gw1", otherOf(bench.at ?? "gw1")];
    const gone = end === "source" ? from : to;
    await lab.cut(gone);
    try {
      const outcome = await bench.up(to);
      expect(outcome.ok).toBe(false);
      expect(outcome.text).toContain("UNREACHABLE");
      expect(outcome.text).toContain(lab.hosts[gone].address);
      console.log(told(outcome));
    } finally {
      await lab.heal(gone);
    }
    await bench.expectWhole();
  });

  it("a target whose disk is full says so, and the application goes on where it was", async () => {
    const [from, to] = [bench.at ?? "gw1", otherOf(bench.at ?? "gw1")];
    const host = bench.gateways.lab.hosts[to];
    await host.run("mkdir -p /var/lib/cloudlet/moves && mount -t tmpfs -o size=256k none /var/lib/cloudlet/moves");
    try {
      const outcome = await bench.up(to);
      expect(outcome.ok).toBe(false);
      console.log(told(outcome));
      expect(outcome.text).toContain("its disk is full");
      expect(bench.at).toBe(from);
      await bench.expectWhole();
    } finally {
      await host.run("umount /var/lib/cloudlet/moves");
    }
    await bench.mustUp(to);
    await bench.expectWhole();
  });

  it("an application that does not answer on the target is reported with its console; a corrected program ends the move", async () => {
    const to = otherOf(bench.at ?? "gw1");
    const outcome = await bench.up(to, { cloudlet: { ready: { tcp: 9, timeoutSeconds: 2 } } });
    expect(outcome.ok).toBe(false);
    console.log(told(outcome));
    expect(outcome.text).toMatch(/has moved and does not come up there/);
    await bench.expectNoTwo();
    await bench.mustUp(to);
    await bench.expectWhole();
  });
});
