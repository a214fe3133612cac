import { beforeEach, describe, expect, it } from "vitest";
import { checkInputs } from "../../provider/core/check.ts";
import { Declarations } from "../../provider/core/declarations.ts";
import type { ResourceDefinition } from "../../provider/core/define.ts";
import { diffInputs } from "../../provider/core/diff.ts";
import { create, inputsOf, read, remove, update, type State } from "../../provider/core/reconcile.ts";
import { cloudlet as definition } from "../../provider/resources/cloudlet/index.ts";
import { digestOf, fakeDigests, FakeWorld } from "../fakes/agents.ts";

const owner = "project/dev";
const reach = (node: string) => ({ connection: { host: node }, nodeAddress: node });
const cloudlet = definition as unknown as ResourceDefinition;

/** A cloudlet on gw1, as a program declares it, with the nodes where it may be next. */
const declared = (preseed: string[], change: State = {}): State => ({
  name: "server",
  owner,
  cluster: "faces",
  hypervisor: "gw1/kvm",
  ...reach("gw1"),
  base: { file: "debian.qcow2" },
  handoff: { preseed: preseed.map((node) => `${node}/kvm`) },
  preseedConnections: preseed.map((node) => ({ hypervisor: `${node}/kvm`, ...reach(node) })),
  ...change,
});

let world: FakeWorld;
let state: State | undefined;
beforeEach(() => {
  world = new FakeWorld();
  state = undefined;
});

async function check(news: State) {
  const old = state && inputsOf(cloudlet, state);
  const checked = await checkInputs(cloudlet, { news, old, declarations: new Declarations(), local: fakeDigests });
  expect(checked.issues).toEqual([]);
  return checked;
}

async function up(news: State): Promise<State> {
  const { inputs } = await check(news);
  const context = world.context();
  state = state
    ? await update(cloudlet, { id: "faces/server", inputs, old: state }, context)
    : (await create(cloudlet, inputs, context)).state;
  return state;
}

async function differences(news: State): Promise<string[]> {
  return diffInputs(cloudlet.inputs, state ?? {}, (await check(news)).inputs).map(({ path }) => path);
}

async function refresh(): Promise<void> {
  state = await read(cloudlet, state ?? {}, world.context());
}

async function settled(news: State): Promise<void> {
  expect(await differences(news), "up twice").toEqual([]);
  await refresh();
  expect(await differences(news), "after a refresh").toEqual([]);
}

const held = (node: string) => [...world.node(node).preseeds.keys()];
const entry = (node: string, bytesTransferred: number) => expect.objectContaining({ hypervisor: `${node}/kvm`, bytesTransferred });

describe("nodes where a cloudlet may be next", () => {
  it("have its base from the cloudlet's own node, and what that cost is told", async () => {
    const shown = (await check(declared(["gw2", "gw3"]))).explanation;
    expect(shown).toBe("preseeds gw2 and gw3 with its base, at low priority");
    const { preseeded } = await up(declared(["gw2", "gw3"]));
    expect(preseeded).toEqual([entry("gw2", 1000), entry("gw3", 1000)]);
    expect(world.node("gw2").last.get("preseed.apply")).toMatchObject({ id: "faces/server", owner, base: digestOf("debian.qcow2") });
    await settled(declared(["gw2", "gw3"]));
    await settled(declared(["gw3", "gw2"]));
    expect((await check(declared(["gw2", "gw3"]))).explanation).toBeUndefined();
  });

  it("need not be supplied again, and let go of it when they are no longer named", async () => {
    await up(declared(["gw2", "gw3"]));
    const { preseeded } = await up(declared(["gw3"]));
    expect(preseeded).toEqual([entry("gw3", 1000)]);
    expect([held("gw2"), held("gw3")]).toEqual([[], [`${owner} faces/server`]]);
    await settled(declared(["gw3"]));
    await remove(cloudlet, state ?? {}, world.context());
    expect(held("gw3")).toEqual([]);
  });

  it("that cannot be reached are a warning, not a failure, and the next up tries again", async () => {
    world.node("gw3").silent = true;
    const { preseeded } = await up(declared(["gw2", "gw3"]));
    expect(preseeded).toEqual([entry("gw2", 1000)]);
    expect(world.said.join("\n")).toMatch(
      /gw3 is not preseeded for cloudlet "faces\/server", and the next `pulumi up` tries again: gw3 does not answer/,
    );
    expect(await differences(declared(["gw2", "gw3"]))).toEqual(["handoff.preseed[1]"]);
    await refresh();
    expect(await differences(declared(["gw2", "gw3"]))).toEqual(["handoff.preseed[1]"]);
    world.node("gw3").silent = false;
    await up(declared(["gw2", "gw3"]));
    await settled(declared(["gw2", "gw3"]));
    expect(state?.["preseeded"]).toEqual([entry("gw2", 1000), entry("gw3", 1000)]);
  });

  it("that fail to take it are a warning, too", async () => {
    world.node("gw2").breaks.add("preseed.apply");
    expect((await up(declared(["gw2"])))["preseeded"]).toEqual([]);
    expect(world.said.join("\n")).toContain("preseed.apply broke on gw2");
  });

  it("that do not answer a refresh are not taken for empty, and those that have lost it show", async () => {
    await up(declared(["gw2", "gw3"]));
    world.node("gw2").silent = true;
    await settled(declared(["gw2", "gw3"]));
    world.node("gw2").silent = false;
    world.node("gw2").blobs.clear();
    await refresh();
    expect(await differences(declared(["gw2", "gw3"]))).toContain("handoff.preseed[0]");
    const { preseeded } = await up(declared(["gw2", "gw3"]));
    expect(preseeded).toEqual([entry("gw2", 1000), entry("gw3", 1000)]);
    await settled(declared(["gw2", "gw3"]));
  });

  it("that are left without an answer keep the update from ending, unless they are to be forgotten", async () => {
    await up(declared(["gw2"]));
    world.node("gw2").silent = true;
    await expect(up(declared([]))).rejects.toMatchObject({ code: "PARTIAL", state: { handoff: { preseed: ["gw2/kvm"] } } });
    await up(declared([], { onUnreachable: "forget" }));
    expect(world.said.join("\n")).toContain('what gw2 holds for cloudlet "faces/server" was forgotten');
    await settled(declared([], { onUnreachable: "forget" }));
  });

  it("may have the cloudlet's own among them, which has everything already", async () => {
    const way = declared(["gw1", "gw2"]);
    expect((await check(way)).explanation).toBe("preseeds gw2 with its base, at low priority");
    const { preseeded } = await up(way);
    expect(preseeded).toEqual([entry("gw2", 1000)]);
    expect(held("gw1")).toEqual([]);
    await settled(way);
  });

  it("are none in a state from before there were any", async () => {
    await up(declared([]));
    const { preseedConnections: _, preseeded: __, ...older } = state ?? {};
    state = { ...older, handoff: { maxDowntimeMillis: 1000, maxTotalSeconds: 600, onExceeded: "throttle" } };
    expect(await differences(declared([]))).toEqual([]);
    await settled(declared([]));
    await up(declared(["gw2"]));
    await settled(declared(["gw2"]));
  });
});
