import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { removeInstance } from "../../../provider/agent/instanceApply.ts";
import { CloudletError } from "../../../provider/core/errors.ts";
import { arrivalSteps } from "../../../provider/agent/moves/target.ts";
import { eventually, RigNode, World } from "./rig.ts";

const sourceSteps = [
  "connected",
  "supplied",
  "ahead",
  "stopped",
  "exported",
  "sent",
  "sealed",
  "released",
  "activated",
  "passing",
  "answered",
  "discarded",
];
const targetSteps = ["prepared", ...arrivalSteps.map((step) => `arrival.${step}`)];
const afterRelease = sourceSteps.slice(sourceSteps.indexOf("released"));

let world: World;
let a: RigNode;
let b: RigNode;
let made: number;

beforeEach(async () => {
  world = new World();
  [a, b] = [new RigNode("a", world), new RigNode("b", world)];
  await a.boot();
  await b.boot();
  made = await a.make();
  world.write("first");
});
afterEach(async () => {
  await a.close();
  await b.close();
});

/** The move is over: one copy runs, with everything, and nothing but the report is left of it. */
async function expectMoved(): Promise<void> {
  expect(world.violations).toEqual([]);
  expect(world.running()).toEqual(["b"]);
  world.write("last");
  expect([...a.driver.guests]).toEqual([]);
  expect((await b.record())?.ownership).toMatchObject({ role: "owner", epoch: made + 1 });
  expect((await b.record())?.lastMove).toMatchObject({ from: "a", to: "b" });
  const left = await a.record();
  expect(left?.ownership).toMatchObject({ role: "released", epoch: made + 1, peer: "b" });
  expect(left?.leaving).toBeUndefined();
  expect(left?.forward).toMatchObject({ address: "127.0.0.1", ports: [{ protocol: "tcp", hostPort: 8080, targetPort: 8080 }] });
  expect((await b.record())?.forward).toBeUndefined();
  expect(await b.leftOvers()).toEqual([]);
}

/** What an operator does who runs the same command again. */
async function runAgain(): Promise<void> {
  await eventually(async () => {
    await a.moveTo(b);
  });
}

describe("a move between two agents over TLS, with a fake hypervisor", () => {
  it("takes these steps", async () => {
    await a.moveTo(b);
    expect(a.steps).toEqual(expect.arrayContaining(sourceSteps));
    expect(b.steps).toEqual(expect.arrayContaining(targetSteps));
    await expectMoved();
    expect(await a.leftOvers()).toEqual([]);
  });

  it("takes along what was written after it had been copied ahead", async () => {
    a.fault = { step: "ahead", strike: () => world.write("meanwhile") };
    await a.moveTo(b);
    expect(world.acknowledged).toContain("meanwhile");
    await expectMoved();
    const { bytesAhead = 0, bytesSent = 0 } = (await b.record())?.lastMove ?? {};
    expect(bytesAhead).toBeGreaterThan(0);
    expect(bytesSent).toBeGreaterThan(bytesAhead);
  });

  it("sends nothing ahead to an older agent, which would throw it away", async () => {
    const arrival = b.target.arrival.bind(b.target);
    b.target.arrival = async (of) => {
      const { takesAhead: _, ...older } = await arrival(of);
      return older;
    };
    await a.moveTo(b);
    expect(a.steps).not.toContain("ahead");
    expect((await b.record())?.lastMove?.bytesAhead).toBeUndefined();
    await expectMoved();
  });

  it("waits out a short break of the link while it copies ahead", async () => {
    b.fault = { step: "arrival.begun", strike: () => (b.link.cut(), setTimeout(() => b.link.heal(), 100)) };
    await a.moveTo(b);
    expect(a.steps).toContain("ahead");
    expect(a.steps).not.toContain("takenBack");
    await expectMoved();
  });

  it("where the link stays cut while it copies ahead, the application has never stopped, and the same command moves it", async () => {
    b.fault = { step: "arrival.begun", strike: () => b.link.cut() };
    await expect(a.moveTo(b)).rejects.toMatchObject({ code: "UNREACHABLE" });
    expect(a.steps).not.toContain("stopped");
    expect(world.running()).toEqual(["a"]);
    expect(await a.leftOvers()).toEqual([]);
    world.write("meanwhile");
    b.link.heal();
    await runAgain();
    await expectMoved();
  });

  it("stays where it is, running, where the target has no room for what would be copied ahead", async () => {
    b.services.store.requireSpace = () => Promise.reject(new CloudletError("REFUSED", "does not fit"));
    await expect(a.moveTo(b)).rejects.toMatchObject({ code: "REFUSED" });
    expect(a.steps).not.toContain("stopped");
    expect(world.running()).toEqual(["a"]);
  });

  it.each(["begun", "received"])(
    "the target's agent dies at %s of what had changed since: the same command ends the move",
    async (step) => {
      a.fault = { step: "ahead", strike: () => (world.write("meanwhile"), b.dieAt(`arrival.${step}`)) };
      const moving = a.moveTo(b);
      await b.death(moving);
      expect(a.steps).toContain("stopped");
      await b.boot();
      await moving.catch(() => undefined);
      await runAgain();
      await expectMoved();
    },
  );

  it("lets go of what was copied ahead where there is room for one copy only", async () => {
    a.fault = { step: "ahead", strike: () => world.write("meanwhile") };
    const asked: number[] = [];
    b.services.store.requireSpace = (bytes) => {
      asked.push(bytes);
      return asked.length === 3 ? Promise.reject(new CloudletError("REFUSED", "does not fit")) : Promise.resolve();
    };
    await a.moveTo(b);
    // for the base, ahead, and twice once it stood still
    expect(asked).toHaveLength(4);
    await expectMoved();
  });

  it("copies nothing ahead where the source has no room for the copy", async () => {
    a.services.store.requireSpace = () => Promise.reject(new CloudletError("REFUSED", "does not fit"));
    await a.moveTo(b);
    expect(a.steps).not.toContain("ahead");
    await expectMoved();
  });

  it("goes on where what runs cannot be copied ahead", async () => {
    Object.assign(a.driver.ahead ?? {}, { exportParts: () => Promise.reject(new Error("file changed as it was read")) });
    await a.moveTo(b);
    expect(a.steps).not.toContain("ahead");
    await expectMoved();
  });

  it("and back, and there again", async () => {
    await a.moveTo(b);
    world.write("at b");
    await b.moveTo(a);
    expect(world.running()).toEqual(["a"]);
    world.write("at a");
    await a.moveTo(b);
    expect(world.violations).toEqual([]);
    expect((await b.record())?.ownership).toMatchObject({ role: "owner", epoch: made + 3 });
  });

  it("of one that is made anew, to a node which remembers the former one at a later epoch", async () => {
    await a.moveTo(b);
    await b.moveTo(a);
    await removeInstance(a.services, { id: "shop/counter", owner: "p/s" }, a.context());
    world.acknowledged = "new";
    made = await a.make();
    await a.moveTo(b);
    await expectMoved();
  });

  it.each(sourceSteps)("the source's agent dies at %s: alone it goes on where it was, and the same command ends the move", async (step) => {
    a.dieAt(step);
    await a.death(a.moveTo(b));
    await a.boot();
    await a.source.resume(a.context());
    // without any operator
    await eventually(() => expect(world.running()).toEqual([afterRelease.includes(step) ? "b" : "a"]));
    world.write("meanwhile");
    await runAgain();
    await expectMoved();
  });

  it.each(targetSteps)("the target's agent dies at %s: the same command ends the move", async (step) => {
    b.dieAt(step);
    const moving = a.moveTo(b);
    await b.death(moving);
    await b.boot();
    // where it died while it was asked to prepare, nobody else waits for it
    if (step !== "prepared") await moving.catch(() => undefined);
    await eventually(() => expect(world.running()).toHaveLength(1));
    world.write("meanwhile");
    await runAgain();
    await expectMoved();
  });

  it.each(targetSteps.filter((step) => step !== "prepared"))(
    "the answer after %s is lost: the same command ends the move",
    async (step) => {
      // the test may have ended before the link heals
      const { link } = b;
      b.fault = {
        step,
        strike: () => {
          link.cut();
          setTimeout(() => link.heal(), 120);
        },
      };
      await a.moveTo(b).catch(() => undefined);
      expect(b.fault).toBeUndefined();
      await eventually(() => expect(world.running()).toHaveLength(1));
      world.write("meanwhile");
      await runAgain();
      await expectMoved();
    },
  );

  it("another program has the target's port when its agent comes back: they end the move once the port is free", async () => {
    b.dieAt("arrival.owned");
    const moving = a.moveTo(b);
    await b.death(moving);
    const release = await b.occupyPort();
    await b.boot();
    await expect(moving).rejects.toMatchObject({ code: "UNREACHABLE" });
    await release();
    await b.target.reopen(b.context());
    // without any operator
    await a.source.resume(a.context());
    await expectMoved();
  });

  it("both agents die after the release: they end the move by themselves", async () => {
    a.dieAt("activated");
    b.dieAt("arrival.owned");
    const moving = a.moveTo(b);
    await b.death(moving);
    a.link.cut();
    await b.boot();
    await Promise.race([a.killed, sleep(2_000)]);
    // a busy machine may not have come that far; two lives of one agent would wait for each other
    a.die();
    await a.boot();
    await a.source.resume(a.context());
    await runAgain();
    await expectMoved();
  });

  it("the link stays cut: the source goes on, and later the same command moves it", async () => {
    b.fault = { step: "arrival.begun", strike: () => b.link.cut() };
    await expect(a.moveTo(b)).rejects.toMatchObject({ code: "UNREACHABLE" });
    expect(world.running()).toEqual(["a"]);
    world.write("meanwhile");
    b.link.heal();
    await runAgain();
    await expectMoved();
  });

  it("the link stays cut after the release: the copy waits, stopped, and runs on one node only when it heals", async () => {
    a.fault = { step: "released", strike: () => b.link.cut() };
    await expect(a.moveTo(b)).rejects.toMatchObject({ code: "UNREACHABLE" });
    b.link.heal();
    await a.source.resume(a.context());
    await runAgain();
    await expectMoved();
  });

  it("a second operator asks meanwhile: both are told how the one move ended", async () => {
    const reports = await Promise.all([a.moveTo(b), a.moveTo(b)]);
    expect(reports[0]).toEqual(reports[1]);
    await expectMoved();
  });

  it("another node is asked for after the release: it is refused, since the first one may run already", async () => {
    const c = new RigNode("c", world);
    await c.boot();
    a.dieAt("released");
    await a.death(a.moveTo(b));
    await a.boot();
    await expect(a.moveTo(c)).rejects.toMatchObject({ code: "CONFLICT", message: expect.stringMatching(/given to b/) });
    await a.source.resume(a.context());
    await expectMoved();
    await c.close();
  });

  it("the target loses everything before it ran: what the source let go of is sent again", async () => {
    a.dieAt("released");
    await a.death(a.moveTo(b));
    await b.target.cancel("shop/counter", b.context());
    expect(await b.record()).toBeUndefined();
    await a.boot();
    expect(world.running()).toEqual([]);
    await runAgain();
    await expectMoved();
  });

  it("a failed start on the target is tried again by the next run", async () => {
    b.driver.failNext = "start";
    await expect(a.moveTo(b)).rejects.toMatchObject({ code: "FAILED" });
    expect(world.running()).toEqual([]);
    await runAgain();
    await expectMoved();
  });

  it("a failed stop, export or import leaves the application where it was", async () => {
    for (const [node, name] of [
      [a, "stop"],
      [b, "ensure"],
    ] as const) {
      node.driver.failNext = name;
      await expect(a.moveTo(b)).rejects.toMatchObject({ code: "FAILED" });
      expect(world.running()).toEqual(["a"]);
      world.write(name);
    }
    await runAgain();
    await expectMoved();
  });
});
