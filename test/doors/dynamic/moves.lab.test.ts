import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import { openGateways, watchSubscriber, type Declaration, type Gateways, type Kind } from "../../gateways.ts";

const figures: Record<string, string | number>[] = [];
afterAll(() => {
  console.table(figures);
});

describe.each<Kind>(["lxd", "kvm"])("a subscriber who polls through the whole move, on %s", (kind) => {
  let gateways: Gateways;
  const at = (gateway: "gw1" | "gw2"): Declaration => ({
    gateways: { gw1: { kind }, gw2: { kind } },
    at: gateway,
    volume: { sizeMib: 16 },
  });

  beforeAll(async () => {
    gateways = await openGateways(`move${kind}`, kind === "lxd" ? { lxd: ["gw1", "gw2"] } : {});
    const made = await gateways.up(at("gw1"));
    expect(made, made.text).toMatchObject({ ok: true });
    await gateways.exec(["sh", "-c", "echo travels >/data/note && sync"]);
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("never sees the counter go back or an acknowledged visit lost, and the volume travels along", async () => {
    const connection = await gateways.halfAsked("gw1");
    const watcher = watchSubscriber(gateways);
    const moved = await gateways.up(at("gw2"));
    const seen = await watcher.stop();
    expect(moved, moved.text).toMatchObject({ ok: true });
    expect(seen.wentBack).toEqual([]);
    expect(seen.answers).toBeGreaterThan(2);
    const next = (await gateways.visit("gw2")) ?? 0;
    expect(next).toBeGreaterThan(seen.last);
    expect(next).toBeLessThanOrEqual(seen.last + seen.unanswered + 1);
    expect(await gateways.visit("gw1"), "clients of the old address are passed on").toBe(next + 1);
    // one that was stopped has closed what was open; one that runs on knows the connection by another address
    expect((await connection.ask()).outcome).toBe(kind === "lxd" ? "closed" : "ECONNRESET");
    expect(await gateways.exec(["cat", "/data/note"], "gw2")).toBe("travels\n");
    expect([await gateways.running("gw1"), await gateways.running("gw2")]).toEqual([0, 1]);
    const report = moved.outputs["lastMove"] as MoveReport;
    figures.push({
      move: `${kind} → ${kind}`,
      "bytes sent": report.bytesSent,
      "bytes avoided": report.bytesAvoided,
      "away ms": report.downtimeMillis,
      "gap seen ms": seen.longestGapMillis,
    });
  });

  it("goes back, and sends nothing that is there already", async () => {
    const moved = await gateways.up(at("gw1"));
    expect(moved, moved.text).toMatchObject({ ok: true });
    expect(await gateways.exec(["cat", "/data/note"])).toBe("travels\n");
    const report = moved.outputs["lastMove"] as MoveReport;
    // what a virtual machine has in memory goes along as well
    const most = kind === "kvm" ? 40_000_000 : 1_000_000;
    expect(report.bytesSent, "the base is there since the cloudlet left").toBeLessThan(most);
    const again = await gateways.preview(at("gw1"));
    expect(again, again.text).toMatchObject({ ok: true, steps: [] });
  });

  it("goes through the operator where the gateways cannot reach each other", async () => {
    await gateways.lab.cutBetween("gw1", "gw2");
    try {
      const moved = await gateways.up(at("gw2"));
      expect(moved, moved.text).toMatchObject({ ok: true });
      expect(moved.outputs["lastMove"]).toMatchObject({ route: "operator", to: "gw2" });
      expect(await gateways.peek("gw2")).toBeGreaterThan(0);
      expect(moved.diagnostics).toContain("gw1 does not pass clients on to gw2");
    } finally {
      await gateways.lab.healBetween("gw1", "gw2");
    }
    expect(await gateways.peek("gw1")).toBeUndefined();
  });

  it("takes the history of its moves along", async () => {
    expect(await gateways.handoffs("gw1")).toEqual([]);
    const [last, ...before] = await gateways.handoffs("gw2");
    expect(last).toMatchObject({ from: "gw1", to: "gw2", route: "operator", outcome: "moved" });
    expect(before.map(({ to, outcome }) => `${outcome} to ${to}`)).toEqual(["moved to gw1", "moved to gw2"]);
    const moments = ["began", "paused", "sealed", "released", "activated", "ended"];
    expect(last?.events.map(({ type }) => type).filter((type) => moments.includes(type))).toEqual(moments);
  });
});

describe("between the kinds", () => {
  let gateways: Gateways;
  const declared: Declaration = { gateways: { gw1: { kind: "kvm" }, gw2: { kind: "lxd" } }, volume: { sizeMib: 16 } };

  beforeAll(async () => {
    gateways = await openGateways("movemix", { lxd: ["gw2"] });
  });
  afterAll(async () => {
    await gateways?.stack.destroy();
    await gateways?.close();
  });

  it("carries state files and volumes from a virtual machine to a container, and back", async () => {
    const made = await gateways.up({ ...declared, at: "gw1" });
    expect(made, made.text).toMatchObject({ ok: true });
    await gateways.exec(["sh", "-c", "echo travels >/data/note && sync"]);
    const before = (await gateways.visit("gw1")) ?? -1;
    for (const [from, to, count] of [
      ["gw1", "gw2", before + 1],
      ["gw2", "gw1", before + 2],
    ] as const) {
      const shown = await gateways.preview({ ...declared, at: to });
      expect(shown.steps.map(({ op, name }) => `${op} ${name}`).sort(), shown.text).toEqual(["update counter", "update data"]);
      const moved = await gateways.up({ ...declared, at: to });
      expect(moved, moved.text).toMatchObject({ ok: true });
      expect(await gateways.visit(to)).toBe(count);
      expect(await gateways.exec(["cat", "/data/note"], to)).toBe("travels\n");
      expect(await gateways.running(from)).toBe(0);
      const report = moved.outputs["lastMove"] as MoveReport;
      expect(report.mode).toBe("state");
      figures.push({
        move: from === "gw1" ? "kvm → lxd" : "lxd → kvm",
        "bytes sent": report.bytesSent,
        "bytes avoided": report.bytesAvoided,
        "away ms": report.downtimeMillis,
      });
    }
  });
});
