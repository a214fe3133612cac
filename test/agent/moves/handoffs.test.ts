import { appendFile, mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { KeyedLock } from "../../../provider/agent/keyedLock.ts";
import { Handoffs, type Happening } from "../../../provider/agent/moves/handoffs.ts";
import { RigNode, World } from "./rig.ts";

const began = (to: string): Happening => ({ type: "began", epoch: 2, from: "a", to, route: "direct", mode: "cold" });
const report = {
  mode: "cold",
  from: "a",
  to: "b",
  route: "direct",
  bytesSent: 5,
  bytesAvoided: 7,
  totalMillis: 9,
  downtimeMillis: 3,
} as const;
const round = { pages: 1, blocks: 0, rawBytes: 4096, bytes: 900, millis: 8, level: 3, throttlePercent: 0 };

describe("the history of a cloudlet's handoffs", () => {
  let directory: string;
  let handoffs: Handoffs;
  beforeEach(async () => {
    directory = await mkdtemp(join(tmpdir(), "cloudlet-handoffs-"));
    handoffs = new Handoffs(directory, new KeyedLock());
  });
  afterEach(() => rm(directory, { recursive: true, force: true }));

  it("is empty where nothing was noted", async () => {
    expect(await handoffs.list("shop/counter")).toEqual([]);
  });

  it("shows each handoff, the newest first", async () => {
    await handoffs.note("shop/counter", began("b"));
    await handoffs.note("shop/counter", { type: "round", round });
    await handoffs.note("shop/counter", { type: "ended", report });
    await handoffs.note("shop/counter", began("c"));
    await handoffs.noteFailure("shop/counter", new Error("no way"), true);
    expect(await handoffs.list("shop/counter")).toMatchObject([
      { to: "c", outcome: "failed", message: "no way" },
      { to: "b", outcome: "moved", report, events: [{ type: "began" }, { type: "round", round }, { type: "ended" }] },
    ]);
    expect(await handoffs.list("shop/other")).toEqual([]);
  });

  it("tells one that is under way from one that was cut off and begun anew", async () => {
    await handoffs.note("shop/counter", began("b"));
    await handoffs.note("shop/counter", began("b"));
    expect((await handoffs.list("shop/counter")).map(({ outcome }) => outcome)).toEqual(["underWay", "failed"]);
  });

  it("leaves out a line that a crash has cut off, and goes on after it", async () => {
    await handoffs.note("shop/counter", began("b"));
    const [file = ""] = await readdir(directory);
    await appendFile(join(directory, file), '\n{"type":"round","at":1,"rou');
    await handoffs.note("shop/counter", { type: "ended", report });
    expect((await handoffs.list("shop/counter"))[0]?.events.map(({ type }) => type)).toEqual(["began", "ended"]);
  });

  it("keeps the last twenty, and the two ends of a very long one", async () => {
    for (let count = 0; count < 25; count++) await handoffs.note("shop/counter", began(`n${count}`));
    for (let count = 0; count < 300; count++) await handoffs.note("shop/counter", { type: "round", round });
    await handoffs.note("shop/counter", began("last"));
    const found = await handoffs.list("shop/counter");
    expect(found.map(({ to }) => to)).toEqual(["last", ...Array.from({ length: 19 }, (_, index) => `n${24 - index}`)]);
    expect(found[1]?.events).toHaveLength(200);
  });

  it("is gone once it is forgotten, and does not take an empty one for news", async () => {
    await handoffs.note("shop/counter", began("b"));
    await handoffs.adopt("shop/counter", []);
    expect(await handoffs.list("shop/counter")).toHaveLength(1);
    await handoffs.forget("shop/counter");
    expect(await handoffs.list("shop/counter")).toEqual([]);
  });
});

describe("two agents", () => {
  const id = "shop/counter";
  let a: RigNode;
  let b: RigNode;
  beforeEach(async () => {
    const world = new World();
    [a, b] = [new RigNode("a", world), new RigNode("b", world)];
    await a.boot();
    await b.boot();
    await a.make();
  });
  afterEach(async () => {
    await a.close();
    await b.close();
  });

  it("hand the history on with the cloudlet", async () => {
    await a.moveTo(b);
    await b.moveTo(a);
    expect(await b.services.handoffs.list(id)).toEqual([]);
    const found = await a.services.handoffs.list(id);
    expect(found).toMatchObject([
      { from: "b", to: "a", outcome: "moved" },
      { from: "a", to: "b", outcome: "moved", report: { mode: "cold" } },
    ]);
    expect(found[0]?.events.map(({ type }) => type)).toEqual(["began", "paused", "sealed", "released", "activated", "ended"]);
  });

  it("say why one failed and where the application goes on, and hand that on with the next", async () => {
    a.driver.failNext = "stop";
    await expect(a.moveTo(b)).rejects.toThrow("stop failed");
    expect(await a.services.handoffs.list(id)).toMatchObject([{ outcome: "failed", message: "stop failed" }]);
    expect((await a.services.handoffs.list(id))[0]?.events.at(-1)).toMatchObject({ type: "failed", resumed: true });
    await a.moveTo(b);
    expect((await b.services.handoffs.list(id)).map(({ outcome }) => outcome)).toEqual(["moved", "failed"]);
  });

  it("remember one that was cut off with its agent", async () => {
    a.dieAt("sent");
    await a.death(a.moveTo(b));
    await a.boot();
    await a.source.resume(a.context());
    expect(await a.services.handoffs.list(id)).toMatchObject([{ outcome: "failed", message: "the node's agent ended in the middle" }]);
  });
});
