import { setTimeout as sleep } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { Outcome } from "../../engine.ts";
import { engines, FaultBench, otherOf } from "../../faults/bench.ts";
import { openGateways, watchSubscriber, type Declaration, type GatewayName } from "../../gateways.ts";

/** Ctrl-C, for engines that have not ended meanwhile. */
function press(): void {
  for (const pid of engines()) {
    try {
      process.kill(pid, "SIGINT");
    } catch (error) {
      if (!(error instanceof Error && "code" in error && error.code === "ESRCH")) throw error;
    }
  }
}

type Cut = Outcome & { afterMillis: number };

describe("a run that is interrupted", () => {
  let bench: FaultBench;
  beforeAll(async () => {
    bench = new FaultBench(await openGateways("plugtwice", { door: "plugin" }), "kvm");
    await bench.mustUp(undefined);
  });
  afterAll(async () => {
    await bench?.gateways.stack.destroy();
    await bench?.gateways.close();
  });

  /** Ctrl-C as soon as this holds, again and again if need be, and how long the run went on after it. */
  const interrupted = async ({ twice, ...declaration }: Declaration & { twice: boolean }, begun: () => Promise<void>): Promise<Cut> => {
    const interrupt = new AbortController();
    let ended = false;
    const running = bench.gateways.up(declaration, interrupt.signal).finally(() => (ended = true));
    const pressing = bench.gateways.eventually(begun, 60_000).then(async () => {
      const at = performance.now();
      interrupt.abort();
      while (twice && !ended) {
        await sleep(10);
        press();
      }
      return at;
    });
    const [cut, at] = await Promise.all([running, pressing]);
    // an engine that is ended at once may leave its lock
    if (twice) bench.unlock();
    return { ...cut, afterMillis: Math.round(performance.now() - at) };
  };
  const at = (gateway: GatewayName | undefined, more: Partial<Declaration> = {}) => bench.declaration(gateway, more);
  const running = async () => [await bench.gateways.running("gw1"), await bench.gateways.running("gw2")];
  /** The next run brings it there, and nothing is left to do. */
  const goesOn = async (gateway: GatewayName) => {
    await bench.mustUp(gateway);
    expect(await running()).toEqual(gateway === "gw1" ? [1, 0] : [0, 1]);
    expect(await bench.gateways.peek(gateway)).toBeDefined();
    expect(await bench.gateways.preview(at(gateway))).toMatchObject({ ok: true, steps: [] });
  };
  const expectCut = (cut: Cut) => {
    expect(cut.ok).toBe(false);
    expect(cut.afterMillis).toBeLessThan(15_000);
  };

  it("twice while an image is on its way: the next up makes it under the same name", async () => {
    const { lab } = bench.gateways;
    await lab.shape("gw1", { mbit: 8 });
    const before = await lab.bytesReceived("gw1");
    const cut = await interrupted({ ...at("gw1"), twice: true }, async () =>
      expect((await lab.bytesReceived("gw1")) - before).toBeGreaterThan(3e6),
    );
    expectCut(cut);
    await lab.shape("gw1", {});
    await goesOn("gw1");
    await bench.mustUp(undefined);
  });

  it("twice while it waits for the application: the next up takes it up", async () => {
    const cut = await interrupted({ ...at("gw1"), twice: true }, async () => expect(await bench.gateways.running("gw1")).toBe(1));
    expectCut(cut);
    expect(await running()).toEqual([1, 0]);
    await goesOn("gw1");
  });

  it("twice while it moves: one copy, and the next up moves it", async () => {
    const { lab } = bench.gateways;
    await lab.shape("gw1", { mbit: 10 });
    const before = await lab.bytesSent("gw1");
    const watcher = watchSubscriber(bench.gateways);
    const cut = await interrupted({ ...at("gw2"), twice: true }, async () =>
      expect((await lab.bytesSent("gw1")) - before).toBeGreaterThan(2e6),
    );
    expectCut(cut);
    await lab.shape("gw1", {});
    await goesOn("gw2");
    expect((await watcher.stop()).wentBack).toEqual([]);
  });

  it.each(["once", "twice"])("%s when the source has let go: it arrives", async (times) => {
    const from = bench.at ?? "gw1";
    const to = otherOf(from);
    await bench.mustUp(from);
    await bench.arm(from, { pauseAt: "released" });
    const since = new Date();
    const watcher = watchSubscriber(bench.gateways);
    const cut = await interrupted({ ...at(to), twice: times === "twice" }, () => {
      expect(bench.steps(from, "move.run", since)).toContain("released");
      return Promise.resolve();
    });
    expectCut(cut);
    await goesOn(to);
    expect((await watcher.stop()).wentBack).toEqual([]);
  });

  it.each(["once", "twice"])(
    "%s when the target has it and nothing answers: the next up corrects that and ends the move",
    async (times) => {
      const from = bench.at ?? "gw1";
      const to = otherOf(from);
      await bench.mustUp(from);
      const since = new Date();
      const cut = await interrupted({ ...at(to, { cloudlet: { ready: { tcp: 9999 } } }), twice: times === "twice" }, () => {
        expect(bench.steps(from, "move.run", since)).toContain("activated");
        return Promise.resolve();
      });
      expectCut(cut);
      const asked = performance.now();
      await goesOn(to);
      // what is waited for is corrected at once, and not waited for first
      expect(performance.now() - asked).toBeLessThan(60_000);
    },
  );
});
