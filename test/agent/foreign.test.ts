import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { adoptInstance, foreignStatus } from "../../provider/agent/foreign.ts";
import { applyInstance, removeInstance } from "../../provider/agent/instanceApply.ts";
import { instanceStatus } from "../../provider/agent/instances.ts";
import type { InstanceSpec } from "../../provider/agent/protocol.ts";
import { ForeignDriver } from "../fakes/foreignDriver.ts";
import { context, digestText, testAgent } from "./fixture.ts";
import type { TestAgent } from "./fixture.ts";

const id = "shop/web";
const owner = "p/s";
const foreign = { name: "web", uuid: "1-2" };
const image = "an image";
const resources = { cores: 2, memoryMib: 256, diskMib: 1024 };
const spec: InstanceSpec = {
  id,
  owner,
  kind: "lxd",
  state: "running",
  base: { digest: digestText(image) },
  resources,
  ports: [{ port: 80, hostPort: 8080, protocol: "tcp" }],
  files: [],
  environment: { MODE: "edge" },
  volumes: [],
  stateFiles: [],
};

let agent: TestAgent;
let driver: ForeignDriver;
beforeEach(async () => {
  driver = new ForeignDriver();
  agent = await testAgent({ driver });
  const { state, ports, environment, base } = spec;
  driver.others.set("web", { ...foreign, state, resources, ports, environment, base: base.digest, address: "10.0.0.7" });
  driver.images.set(base.digest, image);
});
afterEach(() => {
  agent.remove();
});

const adopt = (crashAt?: string) => adoptInstance(agent.services, { id, owner, foreign }, context(crashAt));
const remove = (known?: typeof foreign) => removeInstance(agent.services, { id, owner, foreign: known }, context());

describe("a guest that was made without us", () => {
  it("is shown as the cloudlet that it would be, and nothing is written", async () => {
    const status = await foreignStatus(agent.services, { name: "web", id, owner }, AbortSignal.timeout(5_000));
    expect(status).toMatchObject({ spec, status: "running", address: "10.0.0.7", imageDigest: spec.base.digest, foreign });
    expect(await instanceStatus(agent.services, id)).toBeUndefined();
    expect(await agent.services.store.list()).toEqual([]);
    expect(driver.calls).toEqual([]);
  });

  it("is taken over under its own name, with its image in the store, and runs again", async () => {
    await adopt();
    expect(driver.calls).toEqual(["take", "start"]);
    const status = await instanceStatus(agent.services, id);
    expect(status).toMatchObject({ spec, status: "running", ownership: { role: "owner" }, imageDigest: spec.base.digest });
    expect(status?.foreign).toBeUndefined();
    expect(await agent.services.store.list()).toEqual([spec.base.digest]);
    expect(agent.published().map((record) => record.spec.id)).toEqual([id]);
    await adopt();
    expect(driver.calls).toEqual(["take", "start"]);
  });

  it("is an ordinary cloudlet from then on: changed, and removed with all that it had", async () => {
    await adopt();
    await applyInstance(agent.services, { spec: { ...spec, ports: [] }, fresh: false }, context());
    expect([...driver.guests.keys()]).toEqual(["web"]);
    expect(driver.guests.get("web")?.contents).toBe("theirs");
    await remove(foreign);
    expect([...driver.guests.keys()]).toEqual([]);
    expect(await instanceStatus(agent.services, id)).toBeUndefined();
  });

  it("keeps the rule that another base would lose what it has written", async () => {
    await adopt();
    const base = { digest: await agent.store("another base") };
    await expect(applyInstance(agent.services, { spec: { ...spec, base }, fresh: false }, context())).rejects.toMatchObject({
      code: "REFUSED",
    });
    expect(await driver.observe(await guestNamed("web"))).toBe("running");
  });

  it.each(["record", "taken", "started"])("is taken over all the same where the agent is killed at %s", async (step) => {
    await expect(adopt(step)).rejects.toThrow(`killed at ${step}`);
    await adopt();
    await applyInstance(agent.services, { spec, fresh: false }, context());
    expect(driver.others.get("web")?.takenBy).toBe(id);
    expect([...driver.guests.keys()]).toEqual(["web"]);
    expect(await instanceStatus(agent.services, id)).toMatchObject({ status: "running" });
  });

  it("runs on, not taken over yet, where that fails half-way", async () => {
    driver.failNext = "taken";
    await expect(adopt()).rejects.toMatchObject({ code: "FAILED" });
    expect(await instanceStatus(agent.services, id)).toMatchObject({ foreign, status: "running" });
    await remove(foreign);
    expect(driver.others.size).toBe(0);
  });

  it("is left alone where another has taken its name since", async () => {
    const other = { ...foreign, uuid: "3-4" };
    await expect(adoptInstance(agent.services, { id, owner, foreign: other }, context())).rejects.toMatchObject({ code: "NOT_FOUND" });
    expect(await instanceStatus(agent.services, id)).toBeUndefined();
    await remove(other);
    expect([...driver.others.keys()]).toEqual(["web"]);
    await remove();
    expect([...driver.others.keys()]).toEqual(["web"]);
    await remove(foreign);
    expect(driver.others.size).toBe(0);
  });

  it("may have the name of a cloudlet that has moved away", async () => {
    await adopt();
    const moved = async () =>
      agent.services.records.update(id, (record) => ({ ...record, ownership: { ...record.ownership, role: "released", peer: "gw2" } }));
    const before = await moved();
    // the same one: it is elsewhere by now
    driver.others.delete("web");
    await adopt();
    expect(await agent.services.records.read(id)).toEqual(before);
    await expect(remove(foreign)).rejects.toMatchObject({ code: "REFUSED" });
    driver.others.set("web", { ...spec, ...foreign, base: spec.base.digest, address: "" });
    await adopt();
    const after = await agent.services.records.read(id);
    expect(after).toMatchObject({ ownership: { role: "owner" }, called: "web" });
    expect(after?.ownership.epoch).toBeGreaterThan(before?.ownership.epoch ?? 0);
  });

  it("is not taken from the owner of a cloudlet of that id", async () => {
    await adopt();
    await expect(adoptInstance(agent.services, { id, owner: "second/dev", foreign }, context())).rejects.toMatchObject({
      code: "CONFLICT",
    });
  });
});

async function guestNamed(name: string) {
  const record = await agent.services.records.read(id);
  if (record === undefined) throw new Error("there is a record");
  expect(record.called).toBe(name);
  return {
    name,
    spec: record.spec,
    basePath: "",
    directory: "",
    network: { bridge: "", mac: "", address: "", prefix: 16, gateway: "" },
    volumes: [],
  };
}
