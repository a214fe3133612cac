import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { eventually, RigNode, World } from "./rig.ts";

const sourceSteps = ["supplied", "round1", "paused", "sealed", "released", "activated", "passing", "answered", "discarded"];
const targetSteps = ["waiting", "received", "sealed", "owned", "activated", "up", "ready", "completed"].map((step) => `arrival.${step}`);
const afterRelease = sourceSteps.slice(sourceSteps.indexOf("released"));

let world: World;
let a: RigNode;
let b: RigNode;
let made: number;

beforeEach(async () => {
  world = new World();
  [a, b] = [new RigNode("a", world, { live: true }), new RigNode("b", world, { live: true })];
  await a.boot();
  await b.boot();
  made = await a.make();
  world.write("first");
});
afterEach(async () => {
  await a.close();
  await b.close();
});

async function expectMoved(moves = 1): Promise<void> {
  expect(world.violations).toEqual([]);
  expect(world.running()).toEqual(["b"]);
  world.write("last");
  expect([...a.driver.guests]).toEqual([]);
  expect((await b.record())?.ownership).toMatchObject({ role: "owner", epoch: made + moves });
  expect((await a.record())?.ownership).toMatchObject({ role: "released", epoch: made + moves, peer: "b" });
  expect((await a.record())?.forward).toMatchObject({ address: "127.0.0.1" });
  expect(await b.leftOvers()).toEqual([]);
}

async function runAgain(): Promise<void> {
  await eventually(async () => {
    await a.moveTo(b);
  });
}

describe("a live move between two agents over TLS, with a fake hypervisor", () => {
  it("takes these steps, and what a client wrote meanwhile is there", async () => {
    a.fault = { step: "round1", strike: () => world.write("between the rounds") };
    const report = await a.moveTo(b);
    expect(report).toMatchObject({ mode: "live" });
    expect(report?.rounds?.length).toBeGreaterThan(1);
    expect(a.steps).toEqual(expect.arrayContaining(sourceSteps));
    expect(b.steps).toEqual(expect.arrayContaining(targetSteps));
    await expectMoved();
  });

  it("is a cold one where the target cannot take in what runs", async () => {
    const cold = new RigNode("c", world);
    await cold.boot();
    try {
      expect(await a.moveTo(cold)).toMatchObject({ mode: "cold" });
      expect(world.violations).toEqual([]);
      expect(world.running()).toEqual(["c"]);
    } finally {
      await cold.close();
    }
  });

  it.each(sourceSteps)(
    "the source's agent dies at %s: the guest goes on in one place, and the same command ends the move",
    async (step) => {
      a.dieAt(step);
      await a.death(a.moveTo(b));
      await a.boot();
      await a.source.resume(a.context());
      await eventually(() => expect(world.running()).toEqual([afterRelease.includes(step) ? "b" : "a"]));
      world.write("meanwhile");
      await runAgain();
      await expectMoved();
    },
  );

  it.each(targetSteps)("the target's agent dies at %s: the same command ends the move", async (step) => {
    b.dieAt(step);
    const moving = a.moveTo(b);
    await b.death(moving);
    await b.boot();
    await moving.catch(() => undefined);
    await eventually(() => expect(world.running()).toHaveLength(1));
    world.write("meanwhile");
    await runAgain();
    await expectMoved();
  });

  it("the target loses what it had sealed: the source takes the guest back with the next epoch, and the move can be made again", async () => {
    a.fault = { step: "released", strike: () => b.driver.live?.lose() };
    await expect(a.moveTo(b)).rejects.toThrow("has lost the memory");
    expect(world.running()).toEqual(["a"]);
    expect((await a.record())?.ownership).toMatchObject({ role: "owner", epoch: made + 2 });
    expect((await b.record())?.ownership).toMatchObject({ role: "released", epoch: made + 1 });
    world.write("meanwhile");
    await a.moveTo(b);
    await expectMoved(3);
  });

  it("a target that has given up says so again when its answer was lost, and to a source that was killed", async () => {
    a.fault = { step: "released", strike: () => b.driver.live?.lose() };
    const { link } = b;
    b.fault = {
      step: "arrival.givenUp",
      strike: () => {
        link.cut();
        setTimeout(() => link.heal(), 120);
      },
    };
    await a.moveTo(b).catch(() => undefined);
    await a.source.resume(a.context()).catch(() => undefined);
    await eventually(() => expect(world.running()).toEqual(["a"]));
    expect(world.violations).toEqual([]);
    expect((await a.record())?.ownership).toMatchObject({ role: "owner", epoch: made + 2 });
  });
});
