import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways, type GatewayName } from "../gateways.ts";
import { FaultBench, otherOf } from "./bench.ts";

/** Counts in memory alone; a file system of memory holds the number. */
const counting =
  "(i=0; while true; do i=$((i+1)); echo $i >/dev/shm/new; mv /dev/shm/new /dev/shm/count; sleep 0.05; done) >/dev/null 2>&1 &";
const stepMillis = 60_000;

/** What breaks while a virtual machine moves and runs: it lives in one place, and loses neither memory nor disk unless its own process was killed. */
describe("a live move", () => {
  let bench: FaultBench;
  let remembered = 0;

  beforeAll(async () => {
    bench = new FaultBench(await openGateways("faultlive"), "kvm");
    await bench.mustUp("gw1");
    await bench.expectWhole();
    await begin("gw1");
    for (const gateway of ["gw1", "gw2"] as const) await bench.gateways.lab.shape(gateway, { mbit: 25 });
  });
  afterAll(() => bench?.gateways.close());

  const here = () => bench.at ?? "gw1";
  const begin = async (gateway: GatewayName) => {
    remembered = 0;
    await bench.gateways.exec(["sh", "-c", counting], gateway);
    await sleep(500);
  };
  const expectMemory = async () => {
    const count = Number(await bench.gateways.exec(["cat", "/dev/shm/count"], here()));
    expect(count).toBeGreaterThan(remembered);
    remembered = count;
  };
  const expectAlive = async () => {
    await bench.gateways.eventually(() => bench.expectWhole(), 90_000);
  };
  /** Moves, with a fault on the way: done at once, or at the second attempt. */
  const moveThrough = async (fault: (from: GatewayName, to: GatewayName) => Promise<unknown>) => {
    const [from, to] = [here(), otherOf(here())];
    const moving = bench.up(to);
    const [, outcome] = await Promise.all([fault(from, to), moving]);
    console.log(
      outcome.ok
        ? "at once"
        : `first: ${outcome.text
            .split("\n")
            .filter((line) => /error|fix/i.test(line))
            .slice(0, 3)
            .join(" ")}`,
    );
    if (!outcome.ok) {
      await expectAlive();
      await bench.mustUp(to);
    }
    await expectAlive();
    return outcome;
  };
  const stepOf = async (gateway: GatewayName, step: string, since = new Date()) => {
    const deadline = Date.now() + stepMillis;
    while (!bench.steps(gateway, "move.run", since).includes(step)) {
      if (Date.now() > deadline) throw new Error(`step ${step} did not come: ${bench.steps(gateway, "move.run", since).join(" ")}`);
      await sleep(10);
    }
  };
  const nothing = async () => undefined;

  for (const step of ["round1", "paused", "sealed", "released", "activated", "answered"])
    it(`the source's agent is killed at ${step}`, async () => {
      await bench.arm(here(), { crashAt: step });
      await moveThrough(nothing);
      await expectMemory();
    });

  for (const step of ["arrival.waiting", "arrival.received", "arrival.sealed", "arrival.owned", "arrival.activated", "arrival.up"])
    it(`the target's agent is killed at ${step}`, async () => {
      await bench.arm(otherOf(here()), { crashAt: step });
      await moveThrough(nothing);
      await expectMemory();
    });

  it("the link is cut in a round", async () => {
    await moveThrough(async (from, to) => {
      await stepOf(from, "supplied");
      await sleep(1_500);
      await bench.gateways.lab.cutBetween(from, to);
      await sleep(20_000);
      await bench.gateways.lab.healBetween(from, to);
    });
    await expectMemory();
  });

  it("the link is cut while the guest is paused", async () => {
    await bench.arm(here(), { pauseAt: "paused" });
    await moveThrough(async (from, to) => {
      await stepOf(from, "paused");
      await bench.gateways.lab.cutBetween(from, to);
      await sleep(20_000);
      await bench.gateways.lab.healBetween(from, to);
    });
    await expectMemory();
  });

  it("the target's QEMU is killed in a round", async () => {
    await moveThrough(async (from, to) => {
      await stepOf(from, "supplied");
      await sleep(1_500);
      await bench.gateways.stopGuests(to);
    });
    await expectMemory();
  });

  it("the target's QEMU is killed after the source has let go: the source takes the guest back, memory and all", async () => {
    await bench.arm(here(), { pauseAt: "released" });
    const outcome = await moveThrough(async (from, to) => {
      await stepOf(from, "released");
      await bench.gateways.stopGuests(to);
    });
    expect(outcome.text).toContain("has lost the memory");
    await expectMemory();
  });

  it("the source's QEMU is killed in a round: nothing that was counted is lost", async () => {
    await moveThrough(async (from) => {
      await stepOf(from, "supplied");
      await sleep(1_500);
      await bench.gateways.stopGuests(from);
    });
    await begin(here());
  });

  it("the source's QEMU is killed after it has let go: the guest goes on at the target, memory and all", async () => {
    await bench.arm(here(), { pauseAt: "released" });
    await moveThrough(async (from) => {
      await stepOf(from, "released");
      await bench.gateways.stopGuests(from);
    });
    await expectMemory();
  });
});
