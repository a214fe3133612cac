import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { guestName } from "../../../provider/agent/protocol.ts";
import type { FakeLive } from "../../fakes/liveDriver.ts";
import { eventually, RigNode, World } from "./rig.ts";

const id = "shop/counter";

let world: World;
let a: RigNode;
let b: RigNode;
beforeEach(async () => {
  world = new World();
  [a, b] = [new RigNode("a", world, { live: true }), new RigNode("b", world, { live: true })];
  await a.boot();
  await b.boot();
  await a.make();
});
afterEach(async () => {
  await a.close();
  await b.close();
});

function liveOf(node: RigNode): FakeLive {
  if (node.driver.live === undefined) throw new Error("it cannot");
  return node.driver.live;
}

describe("a live move", () => {
  it("to a node without room is refused before anything is sent, and leaves nothing there", async () => {
    liveOf(a).bytes = 2 ** 50;
    await expect(a.moveTo(b)).rejects.toMatchObject({
      code: "REFUSED",
      message: expect.stringMatching(/^shop\/counter was not moved: b: \d+ MiB do not fit: \d+ MiB are free at /),
      fix: "free disk space on the node",
    });
    expect(world.running()).toEqual(["a"]);
    expect(a.driver.calls).not.toContain("stop");
    expect(b.steps).toEqual(["prepared"]);
    expect(await b.record()).toBeUndefined();
    expect([await a.leftOvers(), await b.leftOvers()]).toEqual([[], []]);
    expect(await a.services.handoffs.list(id)).toMatchObject([{ outcome: "failed", events: [{ type: "began" }, { type: "failed" }] }]);
    liveOf(a).bytes = 1_000;
    expect(await a.moveTo(b)).toMatchObject({ mode: "live" });
    expect(world.violations).toEqual([]);
    expect(world.running()).toEqual(["b"]);
  });

  it("has the guest's clock set once it answers, and a cold one does not", async () => {
    await a.moveTo(b);
    await eventually(() => expect(liveOf(b).caughtUp).toEqual([guestName(id)]));
    const c = new RigNode("c", world);
    await c.boot();
    await b.moveTo(c);
    await c.close();
    expect(liveOf(b).caughtUp).toHaveLength(1);
  });
});
