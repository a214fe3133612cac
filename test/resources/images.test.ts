import { beforeEach, describe, expect, it } from "vitest";
import { checkInputs } from "../../provider/core/check.ts";
import { Declarations } from "../../provider/core/declarations.ts";
import type { ResourceDefinition } from "../../provider/core/define.ts";
import { diffInputs } from "../../provider/core/diff.ts";
import { create, inputsOf, read, remove, update, type State } from "../../provider/core/reconcile.ts";
import { baseImage } from "../../provider/resources/baseImage.ts";
import { cloudlet } from "../../provider/resources/cloudlet/index.ts";
import { overlay } from "../../provider/resources/overlay.ts";
import { digestOf, fakeDigests, FakeWorld } from "../fakes/agents.ts";

const owner = "project/dev";
const reach = (node: string) => ({ connection: { host: node }, nodeAddress: node });
const at = (...nodes: string[]) => ({
  nodes: nodes.map((node) => `${node}/kvm`),
  connections: nodes.map((node) => ({ hypervisor: `${node}/kvm`, ...reach(node) })),
});

let world: FakeWorld;
beforeEach(() => (world = new FakeWorld()));

/** A resource as a program declares it: checked, then brought about; `again` shows what a second run would change. */
class Declared {
  state: State | undefined;
  readonly #definition: ResourceDefinition;

  constructor(definition: unknown) {
    this.#definition = definition as ResourceDefinition;
  }

  async check(news: State): Promise<{ inputs: State; explanation?: string | undefined }> {
    const old = this.state && inputsOf(this.#definition, this.state);
    const checked = await checkInputs(this.#definition, { news, old, declarations: new Declarations(), local: fakeDigests });
    expect(checked.issues).toEqual([]);
    return checked;
  }

  async up(news: State): Promise<State> {
    const { inputs } = await this.check(news);
    const context = world.context();
    this.state = this.state
      ? await update(this.#definition, { id: "x", inputs, old: this.state }, context)
      : (await create(this.#definition, inputs, context)).state;
    expect(await this.again(news), "up twice").toEqual([]);
    await this.refresh();
    expect(await this.again(news), "after a refresh").toEqual([]);
    return this.state as State;
  }

  async again(news: State): Promise<string[]> {
    const { inputs } = await this.check(news);
    return diffInputs(this.#definition.inputs, this.state ?? {}, inputs).map(({ path }) => path);
  }

  async refresh(): Promise<void> {
    this.state = await read(this.#definition, this.state ?? {}, world.context());
  }

  async destroy(): Promise<void> {
    await remove(this.#definition, this.state ?? {}, world.context());
  }
}

const file = { name: "debian", owner, file: "debian.qcow2" };
const calls = (node: string) => world.node(node).calls;

describe("a BaseImage", () => {
  it("comes to the first node from the operator's machine, and to the next from its neighbour", async () => {
    const state = await new Declared(baseImage).up({ ...file, ...at("gw1", "gw2") });
    expect(state).toMatchObject({ digest: digestOf("debian.qcow2"), kind: "kvm", format: "qcow2", virtualBytes: 4096 });
    expect(state["placements"]).toEqual([
      { node: "gw1", bytesTransferred: 12, from: "operator" },
      { node: "gw2", bytesTransferred: 1000, from: "gw1" },
    ]);
    expect(calls("gw2")).toEqual(["blobs.fetch", "image.keep"]);
  });

  it("falls back to the operator's machine where the neighbour breaks, or does not answer", async () => {
    const image = new Declared(baseImage);
    await image.up({ ...file, ...at("gw1") });
    world.node("gw2").breaks.add("blobs.fetch");
    expect((await image.up({ ...file, ...at("gw1", "gw2") }))["placements"]).toContainEqual({
      node: "gw2",
      bytesTransferred: 12,
      from: "operator",
    });
    const other = new Declared(overlay);
    world.node("gw1").silent = true;
    await other.up({ ...built("gw3"), sources: at("gw1").connections, baseSource: { file: "debian.qcow2" } });
    expect(calls("gw3")).toEqual(["put 12", "overlay.build", "built recogniser"]);
  });

  it("is not sent again when another node is added, and leaves nodes that are no longer named", async () => {
    const image = new Declared(baseImage);
    await image.up({ ...file, ...at("gw1", "gw2") });
    world.acquired.length = 0;
    await image.up({ ...file, ...at("gw2", "gw3") });
    expect(world.acquired).toEqual([]);
    expect(calls("gw1").at(-1)).toBe("image.release");
    expect(world.node("gw1").images.size).toBe(0);
    await image.destroy();
    expect(["gw2", "gw3"].map((node) => world.node(node).images.size)).toEqual([0, 0]);
  });

  it("that vanished from a node shows in refresh, and up brings it back from the other node", async () => {
    const image = new Declared(baseImage);
    const declared = { ...file, ...at("gw1", "gw2") };
    await image.up(declared);
    world.node("gw1").images.clear();
    world.node("gw1").blobs.clear();
    await image.refresh();
    expect(await image.again(declared)).toEqual(["nodes[0]"]);
    const repaired = await image.up(declared);
    expect(repaired["placements"]).toContainEqual({ node: "gw1", bytesTransferred: 1000, from: "gw2" });
  });

  it("that is not pinned stays what it was when it came first, until its source is another", async () => {
    const image = new Declared(baseImage);
    const from = (url: string, ...nodes: string[]) => ({ name: "debian", owner, url, ...at(...nodes) });
    const first = await image.up(from("https://images.example/a", "gw1"));
    const second = await image.up(from("https://images.example/a", "gw1", "gw2"));
    expect(second["digest"]).toBe(first["digest"]);
    expect(world.acquired).toHaveLength(1);
    const third = await image.up(from("https://images.example/b", "gw1", "gw2"));
    expect(third["digest"]).not.toBe(first["digest"]);
  });

  it("may be on no node at all", async () => {
    const image = new Declared(baseImage);
    expect(await image.up({ ...file })).toMatchObject({ digest: digestOf("debian.qcow2"), bytes: 12, placements: [] });
    await image.destroy();
  });

  it("is never taken for gone while a node does not answer", async () => {
    const image = new Declared(baseImage);
    await image.up({ ...file, ...at("gw1", "gw2") });
    world.node("gw2").silent = true;
    await expect(image.refresh()).rejects.toMatchObject({ code: "UNREACHABLE" });
  });

  it("with memory is booted once, and the others take what was saved", async () => {
    const image = new Declared(baseImage);
    const memory = { sizeMib: 128, ready: { tcp: 22 }, builder: "gw2/kvm" };
    const state = await image.up({ ...file, ...at("gw1", "gw2"), memory });
    expect(state["memoryDigest"]).toBe(world.node("gw2").overlays.get(`${owner} debian.memory`)?.digest);
    expect(calls("gw1")).not.toContain("overlay.build");
    expect(calls("gw1")).toContain("overlay.keep");
    const moved = await image.up({ ...file, ...at("gw1", "gw2", "gw3"), memory: { ...memory, builder: "gw3/kvm" } });
    expect(moved["memoryDigest"]).toBe(state["memoryDigest"]);
    expect(calls("gw3")).not.toContain("overlay.build");
    await image.up({ ...file, ...at("gw1", "gw2", "gw3") });
    expect(["gw1", "gw2", "gw3"].map((node) => world.node(node).overlays.size)).toEqual([0, 0, 0]);
  });
});

const built = (builder: string) => ({
  name: "recogniser",
  owner,
  base: { image: "debian", digest: digestOf("debian.qcow2") },
  builder: `${builder}/kvm`,
  ...reach(builder),
  script: "start",
  ready: { tcp: 8080 },
});

describe("an Overlay", () => {
  beforeEach(async () => {
    await new Declared(baseImage).up({ ...file, ...at("gw1") });
    calls("gw1").length = 0;
  });

  it("is built once, and anew when it is made of something else", async () => {
    const made = new Declared(overlay);
    const first = await made.up(built("gw1"));
    expect(first).toMatchObject({ kind: "kvm", baseDigest: digestOf("debian.qcow2"), memoryBytes: 8192, node: "gw1" });
    expect(first["resources"]).toEqual({ cores: 1, memoryMib: 256, diskMib: 2048 });
    const same = await made.up({ ...built("gw1"), onUnreachable: "forget" });
    expect(same["digest"]).toBe(first["digest"]);
    expect(calls("gw1").filter((call) => call === "built recogniser")).toHaveLength(1);
    expect((await made.up({ ...built("gw1"), script: "other" }))["digest"]).not.toBe(first["digest"]);
    await made.destroy();
    expect(world.node("gw1").overlays.size).toBe(0);
  });

  it("hands its login to the node, and is neither built again nor shown as changed by another one", async () => {
    const made = new Declared(overlay);
    const login = { console: { password: "open sesame" } };
    await made.up({ ...built("gw1"), login });
    expect(world.node("gw1").logins).toEqual([{ console: { user: "root", password: "open sesame" } }]);
    expect(await made.again({ ...built("gw1"), login: { console: { password: "another" } } })).toEqual([]);
    expect(await made.again(built("gw1"))).toEqual([]);
  });

  it("is taken over, not built again, by another builder; the first keeps nothing", async () => {
    const made = new Declared(overlay);
    const first = await made.up(built("gw1"));
    const moved = await made.up({ ...built("gw2"), sources: at("gw1").connections });
    expect(moved).toMatchObject({ digest: first["digest"], node: "gw2" });
    expect(calls("gw2")).not.toContain("overlay.build");
    expect(world.node("gw1").overlays.size).toBe(0);
    const again = await made.up({ ...built("gw2"), onUnreachable: "forget" });
    expect(again["digest"]).toBe(first["digest"]);
  });

  it("that was exported is adopted, and refused over another base", async () => {
    const digest = digestOf("app.overlay");
    const exported = { name: "app", owner, file: "app.overlay", builder: "gw1/kvm", ...reach("gw1") };
    world.built.set(digest, {
      digest,
      kind: "kvm",
      base: digestOf("debian.qcow2"),
      resources: { cores: 2, memoryMib: 64, diskMib: 64 },
      bytes: 1,
      diskBytes: 1,
      memoryBytes: 1,
    });
    const adopted = await new Declared(overlay).up({ ...exported, base: built("gw1").base });
    expect(adopted).toMatchObject({ digest, resources: { cores: 2, memoryMib: 64 } });
    const wrong = new Declared(overlay).up({ ...exported, name: "wrong", base: { image: "other", digest: "d".repeat(64) } });
    await expect(wrong).rejects.toMatchObject({ code: "REFUSED" });
    expect([...world.node("gw1").overlays.keys()]).toEqual([`${owner} app`]);
  });
});

describe("a Cloudlet with an overlay", () => {
  const digest = digestOf("debian.qcow2");
  const declared = (node: string, of: string, extra: State = {}) => ({
    name: "server",
    owner,
    cluster: "faces",
    hypervisor: `${node}/kvm`,
    ...reach(node),
    base: { image: "debian", digest },
    overlay: { digest: of },
    sources: at("gw1").connections,
    ...extra,
  });
  let of: string;
  beforeEach(async () => {
    await new Declared(baseImage).up({ ...file, ...at("gw1") });
    of = String((await new Declared(overlay).up(built("gw1")))["digest"]);
  });

  it("is given the overlay's offers where it lacks it, with a way through the operator, and none where it has it", async () => {
    const there = new Declared(cloudlet);
    await there.up(declared("gw2", of));
    expect(calls("gw2")).toEqual(["blobs.fetch", "instance.apply"]);
    expect(world.node("gw2").last.get("instance.apply")).toMatchObject({
      spec: { overlay: { digest: of }, hydrate: { timeoutSeconds: 600, onTimeout: "wait" } },
      offers: [{ node: "gw1", addresses: ["gw1"], relayPort: 4000 }],
    });
    await new Declared(cloudlet).up(declared("gw1", of));
    expect(world.node("gw1").last.get("instance.apply")).not.toHaveProperty("offers");
  });

  it("shows one that lost its overlay, or has another", async () => {
    const one = new Declared(cloudlet);
    await one.up(declared("gw1", of));
    const found = world.node("gw1").instances.get("faces/server");
    if (!found) throw new Error("it is not there");
    world.node("gw1").instances.set("faces/server", { ...found, spec: { ...found.spec, overlay: undefined } });
    await one.refresh();
    expect(await one.again(declared("gw1", of))).toEqual(["overlay"]);
  });

  it("says in the preview by which rung it starts, where that can be known", async () => {
    const made = { kind: "kvm", base: digest, builder: "gw1/kvm", resources: { cores: 1, memoryMib: 256, diskMib: 2048 }, memoryBytes: 1 };
    const machine = { type: "q", accelerator: "tcg", cpu: { model: "qemu64", flags: [] }, cores: 1, memoryMib: 256 };
    const capacity = { cores: 2, memoryMib: 1024, accelerator: "tcg", cpuFlags: [], machineTypes: ["q"] };
    const explain = async (node: string, extra: State) => (await new Declared(cloudlet).check(declared(node, of, extra))).explanation;
    expect(await explain("gw1", { made, machine, capacity })).toMatch(/^starts by resume: /);
    expect(await explain("gw2", { made, machine, capacity })).toMatch(/^starts from its overlay: it resumes/);
    expect(await explain("gw1", { made, machine, capacity, resources: { cores: 2 } })).toMatch(/^starts by boot: it has 2 cores/);
    expect(await explain("gw1", { made, capacity })).toBeUndefined();
    const same = new Declared(cloudlet);
    await same.up(declared("gw1", of));
    expect((await same.check(declared("gw1", of, { made, machine, capacity }))).explanation).toBeUndefined();
  });

  it("resumes from the base's memory where it declares nothing that only a boot brings about", async () => {
    const memory = { digest: "e".repeat(64), cores: 1, sizeMib: 256, diskMib: 2048 };
    const plain = { ...declared("gw1", of), overlay: undefined, base: { image: "debian", digest, memory } };
    await new Declared(cloudlet).up(plain);
    expect(world.node("gw1").last.get("instance.apply")).toMatchObject({ spec: { overlay: { digest: memory.digest } } });
    const machine = { type: "q", accelerator: "tcg", cpu: { model: "qemu64", flags: [] }, cores: 1, memoryMib: 256 };
    const capacity = { cores: 2, memoryMib: 1024, accelerator: "tcg", cpuFlags: [], machineTypes: ["q"] };
    const explained = await new Declared(cloudlet).check({ ...plain, machine, capacity });
    expect(explained.explanation).toMatch(/^starts from its base's memory: it resumes/);
    await new Declared(cloudlet).up({ ...plain, name: "other", files: [{ path: "/a", content: "" }] });
    expect(world.node("gw1").last.get("instance.apply")).not.toHaveProperty("spec.overlay");
  });
});
