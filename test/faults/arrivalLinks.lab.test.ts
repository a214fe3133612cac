import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { endOf, openArrivalBench } from "./arrivalBench.ts";
import type { ArrivalBench, Phase } from "./arrivalBench.ts";

const phases: Phase[] = ["before anything of its data has come", "before the first reply", "after the first reply"];
// long enough for the hydrator to call its source silent
const silenceMillis = 4_000;

describe("the link to a cloudlet's overlay", () => {
  let arrival: ArrivalBench;

  beforeAll(async () => {
    arrival = await openArrivalBench("arrlink");
  });
  afterAll(() => arrival?.bench.gateways.close());
  afterEach(() => arrival.clear());

  // after the first reply: as where it stays cut, below
  it.each(phases.slice(0, 2))("is cut for a while %s: it only costs time", async (phase) => {
    const { end } = await arrival.startUntil(phase);
    await arrival.lab.cut("gw1");
    await sleep(silenceMillis);
    await arrival.heal();
    expect(await end).toBe("done");
    expect((await arrival.expectWhole()).provision).toMatchObject({ rung: "lazy" });
  });

  it("is cut before it begins: nothing is written down, and the next run starts it", async () => {
    await arrival.lab.cut("gw1");
    expect(await endOf(arrival.start())).toMatch(/gw1.*UNREACHABLE/s);
    await arrival.expectNothing("gw2");
    await arrival.heal();
    await arrival.start();
    await arrival.expectWhole();
  });

  it.each([
    ["wait", "before anything of its data has come"],
    ["wait", "before the first reply"],
    ["wait", "after the first reply"],
    ["boot", "after the first reply"],
  ] as const)(
    "stays cut, and the policy is to %s, %s: the run fails in time, and the next one comes to the end",
    async (onTimeout, phase) => {
      const hydrate = { timeoutSeconds: 2, onTimeout };
      const { end } = await arrival.startUntil(phase, { hydrate });
      await arrival.lab.cut("gw1");
      const cutAt = Date.now();
      const told = await end;
      console.log(`${onTimeout}, cut ${phase}: after ${String(Date.now() - cutAt)} ms ${told}`);
      expect(Date.now() - cutAt).toBeLessThan(30_000);
      expect(told).toMatch(/the source of visits\/a's overlay has been silent for 2 s.*UNREACHABLE/s);
      // whatever is there of it does not look healthy
      expect(await arrival.status()).toMatchObject({ ready: false, hydration: { state: "waiting" } });
      expect(await arrival.answers()).toBe(false);
      expect(arrival.synthesis()?.rung).toBe(onTimeout === "boot" ? "boot" : "lazy");
      await arrival.heal();
      const healedAt = Date.now();
      const before = onTimeout === "wait" ? arrival.pid("qemu") : undefined;
      await arrival.start({ hydrate: { ...hydrate, timeoutSeconds: 30 } });
      const { provision } = await arrival.expectWhole();
      console.log(`${String(Date.now() - healedAt)} ms after the link was back: ${JSON.stringify(provision)}`);
      // a new deadline is no reason to lose what is in its memory
      if (before !== undefined) expect(arrival.pid("qemu")).toBe(before);
    },
  );

  it.each(phases)("is cancelled %s: nothing is left", async (phase) => {
    const ending = new AbortController();
    const { end } = await arrival.startUntil(phase, { signal: ending.signal });
    ending.abort();
    expect(await end).toMatch(/ABORTED/);
    await arrival.bench.gateways.eventually(() => arrival.expectNothing("gw2"), 20_000);
  });
});
