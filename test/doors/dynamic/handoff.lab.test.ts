import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import type { CloudletArgs } from "../../../sdk/dynamic/index.ts";
import { openGateways, type Declaration, type GatewayName, type Gateways } from "../../gateways.ts";

/** Rewrites memory faster than the link of the test carries it. */
const busy = "(while true; do head -c 4000000 /dev/urandom >/dev/shm/noise; done) >/dev/null 2>&1 &";

describe("what a live move may cost", () => {
  let gateways: Gateways;
  const at = (gateway: GatewayName, handoff?: CloudletArgs["handoff"]): Declaration => ({
    gateways: { gw1: { kind: "kvm" }, gw2: { kind: "kvm" } },
    at: gateway,
    ...(handoff && { cloudlet: { handoff } }),
  });
  beforeAll(async () => {
    gateways = await openGateways("budget");
    const made = await gateways.up(at("gw1"));
    expect(made, made.text).toMatchObject({ ok: true });
    await gateways.exec(["sh", "-c", busy]);
    for (const gateway of ["gw1", "gw2"] as const) await gateways.lab.shape(gateway, { mbit: 8 });
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("is a reason to stay, where that was asked for, and the application notices nothing", async () => {
    const before = await gateways.visit("gw1");
    const handoff = { maxDowntimeMillis: 300, onExceeded: "abort" } as const;
    const shown = await gateways.preview(at("gw2", handoff));
    expect(shown.diagnostics).toContain("(live): it runs while it is copied, then pauses for 300 ms at most or stays where it is");
    const failed = await gateways.up(at("gw2", handoff));
    expect(failed.ok).toBe(false);
    expect(failed.text).toMatch(/was not moved: .* 300 ms are allowed/);
    expect(failed.text).toContain("allow more with `handoff`");
    expect(await gateways.visit("gw1")).toBe((before ?? 0) + 1);
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([1, 0]);
    expect(await gateways.handoffs("gw1")).toMatchObject([{ outcome: "failed", to: "gw2" }]);
  });

  it("slows a busy guest down until the pause fits", async () => {
    const moved = await gateways.up(at("gw2", { maxDowntimeMillis: 2_000 }));
    expect(moved, moved.text).toMatchObject({ ok: true });
    const report = moved.outputs["lastMove"] as MoveReport;
    console.log(JSON.stringify(report));
    expect(report).toMatchObject({ mode: "live", predicted: { downtimeMillis: expect.any(Number) } });
    expect(Math.max(...(report.rounds ?? []).map(({ throttlePercent }) => throttlePercent))).toBeGreaterThan(0);
    expect(report.predicted?.downtimeMillis).toBeLessThanOrEqual(2_000);
    const [last] = await gateways.handoffs("gw2");
    expect(last?.events.some((event) => event.type === "decided" && event.decision.action === "throttle")).toBe(true);
    const again = await gateways.preview(at("gw2", { maxDowntimeMillis: 2_000 }));
    expect(again, again.text).toMatchObject({ ok: true, steps: [] });
  });

  it("says before the way back about how much it is", async () => {
    expect((await gateways.preview(at("gw1"))).diagnostics).toMatch(/from gw2 to gw1 \(live, about \d+ MB\)/);
  });
});
