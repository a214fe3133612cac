import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { endOf, openArrivalBench } from "./arrivalBench.ts";
import type { ArrivalBench, Phase, Program } from "./arrivalBench.ts";

const victims: (Program | "agent")[] = ["qemu", "hydrate", "view", "agent"];
const phases: Phase[] = ["while it is resumed", "before the first reply", "after the first reply", "while it settles"];

/** Of a cloudlet whose overlay is coming from the other gateway. */
describe("a process is killed", () => {
  let arrival: ArrivalBench;

  beforeAll(async () => {
    arrival = await openArrivalBench("arrkill");
  });
  afterAll(() => arrival?.bench.gateways.close());
  afterEach(() => arrival.clear());

  it.each(victims.flatMap((victim) => phases.map((phase) => [victim, phase] as const)))(
    "%s, %s: the cloudlet answers in the end, with nothing missing",
    async (victim, phase) => {
      const began = Date.now();
      const starting = arrival.start();
      await arrival.until(phase, starting);
      await arrival.kill(victim);
      await arrival.heal();
      const killed = Date.now();
      const end = await endOf(starting);
      console.log(`${victim} ${phase}: killed after ${String(killed - began)} ms; ${String(Date.now() - killed)} ms later: ${end}`);
      if (end !== "done") await arrival.start();
      const { provision } = await arrival.expectWhole();
      console.log(`${String(Date.now() - killed)} ms: ${JSON.stringify(provision)}`);
    },
  );

  it.each(["qemu", "view", "agent"] as const)("%s, after all is there: nothing hangs, and the next run makes it whole", async (victim) => {
    await arrival.start();
    await arrival.kill(victim);
    await arrival.bench.gateways.eventually(
      async () => expect(await arrival.status()).toMatchObject(victim === "agent" ? { ready: true } : { status: "stopped", ready: false }),
      20_000,
    );
    await arrival.start();
    await arrival.expectWhole();
  });
});
