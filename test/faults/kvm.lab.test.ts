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

  it("the program is killed in the middle of a move", async () => {
    const from = bench.at ?? "gw1";
    await bench.upKilledAt(otherOf(from), { gateway: from, verb: "move.run", step: "released" });
    await bench.mustUp(otherOf(from));
    await bench.expectWhole();
  });

  it("both agents are killed in the middle of a move", async () => {
    const from = bench.at ?? "gw1";
    await bench.arm(from, { crashAt: "sealed" });
    await bench.arm(otherOf(from), { crashAt: "arrival.owned" });
    const { outputs } = await bench.mustUp(otherOf(from));
    await bench.expectWhole();
    console.log(`both agents killed: away for ${String((outputs["lastMove"] as { downtimeMillis: number }).downtimeMillis)} ms`);
  });
});
