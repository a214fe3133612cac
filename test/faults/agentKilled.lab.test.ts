import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { arrivalSteps } from "../../provider/agent/moves/target.ts";
import type { GatewayName } from "../gateways.ts";
import { openGateways } from "../gateways.ts";
import { FaultBench, otherOf } from "./bench.ts";

/** The agent is killed at every step that an undisturbed run has. What supervises it starts it again, as systemd would. */
describe("the agent is killed", () => {
  let bench: FaultBench;
  const steps = { create: [] as string[], move: [] as string[], remove: [] as string[] };

  beforeAll(async () => {
    bench = new FaultBench(await openGateways("faulta", { lxd: ["gw1", "gw2"] }), "lxd");
    await bench.mustUp(undefined);
    const since = new Date();
    await bench.mustUp("gw1");
    steps.create = bench.steps("gw1", "instance.apply", since);
    await bench.mustUp("gw2");
    steps.move = bench.steps("gw1", "move.run", since);
    await bench.mustUp(undefined);
    steps.remove = bench.steps("gw2", "instance.remove", since);
  });
  afterAll(() => bench?.gateways.close());

  /** The same command again where the first has not come to its end. */
  async function upThroughCrash(at: GatewayName | undefined, crashes: Partial<Record<GatewayName, string>>): Promise<void> {
    const armed = (["gw1", "gw2"] as const).filter((gateway) => crashes[gateway] !== undefined);
    for (const gateway of armed) await bench.arm(gateway, { crashAt: crashes[gateway] ?? "" });
    const starts = await Promise.all(armed.map((gateway) => bench.starts(gateway)));
    const first = await bench.up(at);
    await bench.expectNoTwo();
    const told = JSON.stringify(crashes);
    if (!first.ok) console.log(`${told}: ${/[^\n]*\[[A-Z_]+\]/.exec(first.text)?.[0].trim() ?? first.text}`);
    if (!first.ok) await bench.mustUp(at);
    for (const [index, gateway] of armed.entries()) expect(await bench.starts(gateway), told).toBeGreaterThan(starts[index] ?? 0);
    await bench.expectWhole();
  }

  it("at every step of create and of delete: one copy, or none", async () => {
    for (const [index, step] of steps.create.entries()) {
      await upThroughCrash("gw1", { gw1: step });
      const removal = steps.remove[index];
      if (removal === undefined) await bench.mustUp(undefined);
      else await upThroughCrash(undefined, { gw1: removal });
      await bench.expectWhole();
    }
  });

  it("at every step of a move, on the source and on the target: one copy runs, nothing counted is lost", async () => {
    await bench.mustUp("gw1");
    // both nodes have the base by now
    const arrivals = ["prepared", ...arrivalSteps.filter((name) => name !== "supplied").map((name) => `arrival.${name}`)];
    expect(steps.move).toContain("ahead");
    for (let index = 0; index < Math.max(arrivals.length, steps.move.length); index++) {
      const from = bench.at ?? "gw1";
      const to = otherOf(from);
      const [step, arrival] = [steps.move[index], arrivals[index]];
      await upThroughCrash(to, { ...(step !== undefined && { [from]: step }), ...(arrival !== undefined && { [to]: arrival }) });
    }
  });

  it("while nothing goes on, and for good: the cloudlet runs on, and the next up starts the agent again", async () => {
    const at = bench.at ?? "gw1";
    const host = bench.gateways.lab.hosts[at];
    const supervisor = (await host.run("cat /run/cloudlet/agent.pid")).trim();
    await host.run(`kill -KILL ${supervisor}`);
    await bench.gateways.signalAgent(at, "KILL");
    await bench.visit(at);
    const to = otherOf(at);
    await bench.mustUp(to);
    await bench.expectWhole();
    expect(await bench.starts(at)).toBeGreaterThan(1);
  });
});
