import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { openArrivalBench } from "./arrivalBench.ts";
import type { ArrivalBench } from "./arrivalBench.ts";

/** Of a cloudlet whose overlay is coming from the other gateway. */
describe("a process is killed", () => {
  let arrival: ArrivalBench;

  beforeAll(async () => {
    arrival = await openArrivalBench("arrkill");
  });
  afterAll(() => arrival?.bench.gateways.close());
  afterEach(() => arrival.clear());

  it.each([
    ["qemu", "while it is resumed"],
    ["qemu", "before the first reply"],
    ["qemu", "after the first reply"],
    ["view", "before the first reply"],
    ["hydrate", "while it is resumed"],
    ["hydrate", "after the first reply"],
    ["hydrate", "before it settles"],
    ["agent", "while it is resumed"],
    ["agent", "after the first reply"],
    ["agent", "before it settles"],
  ] as const)("%s, %s: the cloudlet answers in the end, with nothing missing", async (victim, phase) => {
    const { end } = await arrival.startUntil(phase);
    await arrival.kill(victim);
    await arrival.heal();
    const killed = Date.now();
    const told = await end;
    console.log(`${victim} ${phase}: ${String(Date.now() - killed)} ms later: ${told}`);
    if (told !== "done") await arrival.start();
    const { provision } = await arrival.expectWhole();
    console.log(`${String(Date.now() - killed)} ms: ${JSON.stringify(provision)}`);
  });

  it("view, after all is there: nothing hangs, and the next run makes it whole", async () => {
    await arrival.start();
    await arrival.kill("view");
    const stopped = async () => expect(await arrival.status()).toMatchObject({ status: "stopped", ready: false });
    await arrival.bench.gateways.eventually(stopped, 20_000);
    await arrival.start();
    await arrival.expectWhole();
  });
});
