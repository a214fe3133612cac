import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways } from "../gateways.ts";
import { FaultBench, otherOf } from "./bench.ts";

/** The program is killed at every step that an undisturbed run has; what is run next is the same command. */
describe("the program is killed", () => {
  let bench: FaultBench;
  const steps = { create: [] as string[], move: [] as string[], remove: [] as string[] };

  beforeAll(async () => {
    bench = new FaultBench(await openGateways("faultp", { lxd: ["gw1", "gw2"] }), "lxd");
    await bench.mustUp(undefined);
    const since = new Date();
    await bench.mustUp("gw1");
    steps.create = bench.steps("gw1", "instance.apply", since);
    const moved = await bench.mustUp("gw2");
    console.log(`undisturbed: ${JSON.stringify(moved.outputs["lastMove"])}`);
    steps.move = bench.steps("gw1", "move.run", since);
    await bench.mustUp(undefined);
    steps.remove = bench.steps("gw2", "instance.remove", since);
    console.log(JSON.stringify(steps));
  });
  afterAll(() => bench?.gateways.close());

  it("at every step of create and of delete: the next run converges, and there is one copy, or none", async () => {
    expect(steps.create.length).toBeGreaterThanOrEqual(5);
    expect(steps.remove.length).toBeGreaterThanOrEqual(3);
    for (const [index, step] of steps.create.entries()) {
      await bench.upKilledAt("gw1", { gateway: "gw1", verb: "instance.apply", step });
      await bench.mustUp("gw1");
      await bench.expectWhole();
      const removal = steps.remove[index];
      if (removal !== undefined) await bench.upKilledAt(undefined, { gateway: "gw1", verb: "instance.remove", step: removal });
      await bench.mustUp(undefined);
      await bench.expectWhole();
    }
  });

  it("at every step of a move: the next run converges, one copy runs, nothing counted is lost", async () => {
    expect(steps.move.length).toBeGreaterThanOrEqual(9);
    await bench.mustUp("gw1");
    for (const step of ["prepared", ...steps.move]) {
      const from = bench.at ?? "gw1";
      const to = otherOf(from);
      const [gateway, verb] = step === "prepared" ? [to, "move.prepare"] : [from, "move.run"];
      await bench.upKilledAt(to, { gateway, verb, step });
      await bench.expectNoTwo();
      const { outputs } = await bench.mustUp(to);
      await bench.expectWhole();
      console.log(`killed at ${step}: away for ${(outputs["lastMove"] as { downtimeMillis: number }).downtimeMillis} ms`);
    }
  });
});
