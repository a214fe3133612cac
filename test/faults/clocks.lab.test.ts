import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways } from "../gateways.ts";
import { FaultBench } from "./bench.ts";

const day = 24 * 60 * 60 * 1000;

/** A clock that is wrong by so much, for a program of Node.js: all hosts of a lab share the kernel's. */
const wrongClock = (millis: number): string => `
  const right = Date;
  globalThis.Date = class extends right {
    constructor(...given) { if (given.length === 0) super(right.now() + ${millis}); else super(...given); }
    static now() { return right.now() + ${millis}; }
  };`;

describe.each([
  ["behind", -day],
  ["ahead", day],
])("a node whose clock is a day %s", (_what, millis) => {
  let bench: FaultBench;

  beforeAll(async () => {
    bench = new FaultBench(await openGateways(millis < 0 ? "clockback" : "clockfwd"), "kvm");
    await bench.mustUp("gw1");
    const { gw2 } = bench.gateways.lab.hosts;
    await gw2.run("cat >/etc/wrong-clock.js", { stdin: wrongClock(millis) });
    await gw2.run("echo NODE_OPTIONS=--require=/etc/wrong-clock.js >/etc/default/cloudlet-agent; /etc/init.d/cloudlet-agent restart", {
      timeoutMillis: 60_000,
    });
  });
  afterAll(async () => {
    await bench?.gateways.lab.hosts.gw2.run("rm -f /etc/default/cloudlet-agent /etc/wrong-clock.js");
    await bench?.up(undefined);
    await bench?.gateways.close();
  });

  it("takes a cloudlet and gives it back, which loses nothing", async () => {
    for (const at of ["gw2", "gw1", "gw2"] as const) {
      await bench.mustUp(at);
      await bench.expectWhole();
    }
    // newest first, each with the clock of whoever gave it away
    const began = (await bench.gateways.handoffs("gw2")).map(({ from, outcome, events }) => {
      const at = events.find(({ type }) => type === "began")?.at ?? 0;
      return `${outcome} from ${from}, ${String(Math.round((at - Date.now()) / day))} days`;
    });
    expect(began).toEqual(["moved from gw1, 0 days", `moved from gw2, ${String(millis / day)} days`, "moved from gw1, 0 days"]);
  });

  it("passes its clients on", async () => {
    await bench.mustUp("gw1");
    expect(await bench.gateways.peek("gw2"), "by the address that it had").toBe(await bench.gateways.peek("gw1"));
    await bench.expectWhole();
  });

  it("takes one that is made anew under the name of one that it remembers", async () => {
    await bench.mustUp(undefined);
    await bench.mustUp("gw1");
    await bench.mustUp("gw2");
    await bench.expectWhole();
  });
});
