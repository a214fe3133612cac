import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways } from "../gateways.ts";
import { FaultBench, otherOf } from "./bench.ts";

/** The same faults on virtual machines, at the steps where their files matter, and QEMU's own death. */
describe("on kvm", () => {
  let bench: FaultBench;

  beforeAll(async () => {
    bench = new FaultBench(await openGateways("faultk"), "kvm");
    await bench.mustUp("gw1");
    await bench.expectWhole();
  });
  afterAll(() => bench?.gateways.close());

  it("QEMU that was killed while it ran is drift, and up repairs it with what was counted", async () => {
    const at = bench.at ?? "gw1";
    await bench.gateways.stopGuests(at);
    expect(await bench.gateways.stack.refresh()).toMatchObject({ ok: true });
    await bench.mustUp(at);
    await bench.expectWhole();
  });

  it("QEMU that is killed while it is being suspended loses nothing", async () => {
    const at = bench.at ?? "gw1";
    const suspending = bench.up(at, { cloudlet: { state: "suspended" } });
    await bench.gateways.stopGuests(at);
    await suspending;
    await bench.mustUp(at);
    await bench.expectWhole();
  });

  it.each(["released"])("the program is killed at %s of a move", async (step) => {
    const from = bench.at ?? "gw1";
    await bench.upKilledAt(otherOf(from), { gateway: from, verb: "move.run", step });
    await bench.mustUp(otherOf(from));
    await bench.expectWhole();
  });

  it.each(["stopped", "sealed", "discarded"])("the source's agent is killed at %s of a move", async (step) => {
    const from = bench.at ?? "gw1";
    await bench.arm(from, { crashAt: step });
    await bench.mustUp(otherOf(from));
    await bench.expectWhole();
  });

  it.each(["made", "owned"])("the target's agent is killed at %s of a move", async (step) => {
    const to = otherOf(bench.at ?? "gw1");
    await bench.arm(to, { crashAt: `arrival.${step}` });
    await bench.mustUp(to);
    await bench.expectWhole();
  });
});
