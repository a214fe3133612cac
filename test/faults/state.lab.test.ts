import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openStack, type TestStack } from "../engine.ts";
import { openGateways } from "../gateways.ts";
import { FaultBench, otherOf } from "./bench.ts";

/** State and world drift apart: a program that died while the agents went on, and two programs at once. */
describe("what the state does not know", () => {
  let bench: FaultBench;
  let other: TestStack;

  beforeAll(async () => {
    bench = new FaultBench(await openGateways("faults", { lxd: ["gw1", "gw2"] }), "lxd");
    // the same project and stack from another machine, so the same owner
    other = await openStack({ program: () => Promise.resolve({}) });
    await bench.mustUp("gw1");
    await bench.expectWhole();
  });
  afterAll(async () => {
    await other?.close();
    await bench?.gateways.close();
  });

  it("a refresh after the agents have ended a move alone shows where the cloudlet is", async () => {
    const { gateways } = bench;
    await bench.upKilledAt("gw2", { gateway: "gw1", verb: "move.run", step: "released" });
    await gateways.eventually(async () => expect(await gateways.running("gw2")).toBe(1), 30_000);
    await gateways.eventually(async () => expect(bench.steps("gw1", "move.run", new Date(0)).at(-1)).toBe("discarded"), 30_000);
    const refreshed = await gateways.stack.refresh();
    expect(refreshed.ok, refreshed.text).toBe(true);
    const stored = (await gateways.stack.state()).find(({ type }) => type.endsWith(":Cloudlet"));
    expect(stored?.outputs).toMatchObject({ hypervisor: "gw2/lxd", status: "moved to gw2" });
  });

  it("to name the old place then is refused, with the way out; nothing changes", async () => {
    const outcome = await bench.up("gw1");
    expect(outcome.ok).toBe(false);
    expect(outcome.text).toContain('cloudlet "visits/counter" is on gw2 now');
    expect(outcome.text).toContain("set hypervisor to the one on gw2");
    expect(await bench.gateways.running("gw2")).toBe(1);
    expect(await bench.gateways.running("gw1")).toBe(0);
  });

  it("to remove it then is refused, as it would go on elsewhere", async () => {
    const outcome = await bench.up(undefined);
    expect(outcome.ok).toBe(false);
    expect(outcome.text).toContain("has moved to gw2");
    expect(await bench.gateways.running("gw2")).toBe(1);
  });

  it("to name the new place converges", async () => {
    await bench.mustUp("gw2");
    await bench.expectWhole();
    const again = await bench.up("gw2");
    expect(again, again.text).toMatchObject({ ok: true, steps: [] });
  });

  it("two programs that move it at the same time: one after the other, and never two copies", async () => {
    const { gateways } = bench;
    const from = bench.at ?? "gw2";
    const taken = await other.up(gateways.program(bench.declaration(from)));
    expect(taken.ok, taken.text).toBe(true);
    await bench.expectWhole();
    const to = otherOf(from);
    const both = Promise.all([bench.up(to), other.up(gateways.program(bench.declaration(to)))]);
    let done = false;
    void both.finally(() => (done = true));
    while (!done) await bench.expectNoTwo();
    for (const outcome of await both) expect(outcome.ok, outcome.text).toBe(true);
    await bench.expectWhole();
  });

  it("what was begun and given up does not keep the other gateway's hypervisor from being removed", async () => {
    const { gateways } = bench;
    const [from, to] = [bench.at ?? "gw1", otherOf(bench.at ?? "gw1")];
    await bench.upKilledAt(to, { gateway: to, verb: "move.prepare", step: "prepared" });
    const only = await gateways.up({ ...bench.declaration(from), gateways: { [from]: bench.declaration(from).gateways[from] } });
    expect(only.ok, only.text).toBe(true);
    await bench.expectWhole();
  });
});
