import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openGateways, type Declaration, type Gateways } from "../gateways.ts";

const declared: Declaration = { gateways: { gw1: { kind: "lxd" }, gw2: { kind: "lxd" } }, at: "gw1", volume: { sizeMib: 16 } };

describe("a stack that changes doors", () => {
  let dynamic: Gateways;
  let plugin: Gateways;
  let visits: number;
  beforeAll(async () => {
    dynamic = await openGateways("plugdoors", { lxd: ["gw1", "gw2"] });
    plugin = dynamic.through("plugin");
    const made = await dynamic.up(declared);
    expect(made, made.text).toMatchObject({ ok: true });
    visits = (await dynamic.visit("gw1")) ?? -1;
  });
  afterAll(async () => {
    await dynamic?.stack.destroy();
    await dynamic?.close();
  });

  it("from dynamic resources to the plugin: a preview shows nothing, and up touches nothing", async () => {
    const shown = await plugin.preview(declared);
    expect(shown, shown.text).toMatchObject({ ok: true, steps: [] });
    const moved = await plugin.up(declared);
    expect(moved, moved.text).toMatchObject({ ok: true, steps: [] });
    expect((await plugin.stack.state()).map(({ type }) => type).filter((type) => !type.startsWith("cloudlet:index:"))).toEqual([]);
    expect(await plugin.visit("gw1")).toBe(visits + 1);
  });

  it("goes on behind the plugin: refresh, a change, a move", async () => {
    const refreshed = await plugin.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    expect(await plugin.preview(declared)).toMatchObject({ ok: true, steps: [] });
    const moved = await plugin.up({ ...declared, at: "gw2" });
    expect(moved, moved.text).toMatchObject({ ok: true });
    expect(await plugin.visit("gw2")).toBe(visits + 2);
  });

  it("and back: updates in place, after which refresh and delete work as before", async () => {
    const there = { ...declared, at: "gw2" } as const;
    const shown = await dynamic.preview(there);
    expect(shown, shown.text).toMatchObject({ ok: true });
    expect(new Set(shown.steps.map(({ op }) => op))).toEqual(new Set(["update"]));
    const back = await dynamic.up(there);
    expect(back, back.text).toMatchObject({ ok: true });
    expect(await dynamic.visit("gw2")).toBe(visits + 3);
    const refreshed = await dynamic.stack.refresh();
    expect(refreshed, refreshed.text).toMatchObject({ ok: true });
    expect(await dynamic.preview(there)).toMatchObject({ ok: true, steps: [] });
    const gone = await dynamic.stack.destroy();
    expect(gone, gone.text).toMatchObject({ ok: true });
    expect(await dynamic.running("gw2")).toBe(0);
  });
});
