import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { endOf, openArrivalBench } from "./arrivalBench.ts";
import type { ArrivalBench, Phase } from "./arrivalBench.ts";

const phases: Phase[] = ["before anything of its data has come", "before the first reply", "after the first reply", "just before the end"];
// long enough for the hydrator to call its source silent
const silenceMillis = 4_000;

describe("the link to a cloudlet's overlay", () => {
  let arrival: ArrivalBench;

  beforeAll(async () => {
    arrival = await openArrivalBench("arrlink");
  });
  afterAll(() => arrival?.bench.gateways.close());
  afterEach(() => arrival.clear());

  it.each(phases)("is cut for a while %s: it only costs time", async (phase) => {
    const starting = arrival.start();
    await arrival.until(phase, starting);
    await arrival.lab.cut("gw1");
    await sleep(silenceMillis);
    await arrival.heal();
    expect(await endOf(starting)).toBe("done");
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

  // between the first reply and the end there is too little time for this on a busy machine
  const lasting = phases.filter((phase) => phase !== "after the first reply");
  it.each([...lasting.map((phase) => ["wait", phase] as const), ...lasting.slice(1).map((phase) => ["boot", phase] as const)])(
    "stays cut, and the policy is to %s, %s: the run fails in time, and the next one comes to the end",
    async (onTimeout, phase) => {
      const hydrate = { timeoutSeconds: 1, onTimeout };
      const starting = arrival.start(hydrate);
      await arrival.until(phase, starting);
      await arrival.lab.cut("gw1");
      const cutAt = Date.now();
      const end = await endOf(starting);
      console.log(`${onTimeout}, cut ${phase}: after ${String(Date.now() - cutAt)} ms ${end}`);
      expect(Date.now() - cutAt).toBeLessThan(20_000);
      expect(end).toMatch(/the source of visits\/a's overlay has been silent for 1 s.*UNREACHABLE/s);
      // whatever is there of it does not look healthy
      expect(await arrival.status()).toMatchObject({ ready: false, hydration: { state: "waiting" } });
      expect(await arrival.answers()).toBe(false);
      expect(arrival.synthesis()?.rung).toBe(onTimeout === "boot" ? "boot" : "lazy");
      await arrival.heal();
      await arrival.start({ ...hydrate, timeoutSeconds: 30 });
      const { provision } = await arrival.expectWhole();
      console.log(JSON.stringify(provision));
    },
  );

  it.each(phases)("is cancelled %s: nothing is left", async (phase) => {
    const ending = new AbortController();
    const starting = arrival.start(undefined, ending.signal);
    await arrival.until(phase, starting);
    ending.abort();
    expect(await endOf(starting)).toMatch(/ABORTED/);
    await arrival.bench.gateways.eventually(() => arrival.expectNothing("gw2"), 20_000);
  });
});
