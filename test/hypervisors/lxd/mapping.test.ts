import { describe, expect, it } from "vitest";
import type { InstanceSpec } from "../../../provider/agent/protocol.ts";
import { buildKey, environmentKey, isOurs, merge, rootIdOf, stateOf, toLxd } from "../../../provider/hypervisors/lxd/mapping.ts";
import type { Guest } from "../../../provider/hypervisors/types.ts";

const spec: InstanceSpec = {
  id: "shop/cart",
  owner: "p/s",
  kind: "lxd",
  state: "running",
  base: { digest: "b".repeat(64) },
  resources: { cores: 2, memoryMib: 256, diskMib: 1024 },
  ports: [],
  files: [],
  environment: { COLOUR: "red" },
  volumes: [],
  stateFiles: [],
};
const guest: Guest = {
  name: "shop-cart-12345678",
  spec,
  basePath: "/store/base",
  directory: "/guests/cart",
  network: { bridge: "cloudlet0", mac: "02:00:00:00:00:01", address: "10.87.0.2", prefix: 16, gateway: "10.87.0.1" },
  volumes: [],
};

describe("what a guest is to LXD", () => {
  it("has limits, marks and environment as configuration", () => {
    expect(toLxd(guest, "default").config).toEqual({
      "boot.autostart": "false",
      "limits.cpu": "2",
      "limits.memory": "256MiB",
      "user.cloudlet.id": "shop/cart",
      "user.cloudlet.owner": "p/s",
      "user.cloudlet.base": "b".repeat(64),
      "environment.COLOUR": "red",
    });
  });
  it("has its root, its network and its volumes as devices", () => {
    const devices = toLxd({ ...guest, volumes: [{ id: "shop/data", path: "/data", hostPath: "/volumes/data" }] }, "pool1").devices;
    expect(devices.root).toEqual({ type: "disk", path: "/", pool: "pool1", size: "1024MiB" });
    expect(devices.eth0).toEqual({ type: "nic", name: "eth0", nictype: "bridged", parent: "cloudlet0", hwaddr: "02:00:00:00:00:01" });
    expect(Object.entries(devices).filter(([name]) => name.startsWith("volume-"))).toEqual([
      [expect.any(String), { type: "disk", path: "/data", source: "/volumes/data/data" }],
    ]);
  });
});

describe("bringing a container to its specification", () => {
  const wanted = toLxd(guest, "default");
  const present = { config: { ...wanted.config, "volatile.uuid": "1", "user.cloudlet.build": "x" }, devices: wanted.devices };

  it("finds nothing to do where all is as wanted, in any order", () => {
    const shuffled = { config: Object.fromEntries(Object.entries(present.config).reverse()), devices: present.devices };
    expect(merge(shuffled, wanted)).toBeUndefined();
  });
  it.each<[string, Partial<InstanceSpec>, Record<string, string | undefined>]>([
    ["a limit", { resources: { cores: 1, memoryMib: 512, diskMib: 1024 } }, { "limits.cpu": "1", "limits.memory": "512MiB" }],
    ["a new variable", { environment: { COLOUR: "red", SIZE: "1" } }, { "environment.SIZE": "1", "environment.COLOUR": "red" }],
    ["a variable that went", { environment: {} }, { "environment.COLOUR": undefined }],
  ])("changes %s and keeps what is not declared", (_what, change, expected) => {
    const merged = merge(present, toLxd({ ...guest, spec: { ...spec, ...change } }, "default"));
    expect(merged?.config).toMatchObject({ "volatile.uuid": "1", "user.cloudlet.build": "x" });
    for (const [key, value] of Object.entries(expected)) expect(merged?.config[key]).toBe(value);
  });
  it("detaches volumes of ours and leaves devices that somebody added", () => {
    const devices = { ...present.devices, "volume-old": { type: "disk", path: "/old", source: "/x" }, usb: { type: "usb" } };
    const merged = merge({ ...present, devices }, wanted);
    expect(Object.keys(merged?.devices ?? {}).sort()).toEqual(["eth0", "root", "usb"]);
  });
});

describe("what LXD says about a container", () => {
  it.each([
    ["Running", "running"],
    ["Stopped", "stopped"],
    ["Frozen", "suspended"],
  ])("reads %s as %s", (status, state) => expect(stateOf({ name: "a", status })).toBe(state));
  it("is an error where it is neither", () => expect(() => stateOf({ name: "a", status: "Error" })).toThrow(/a is Error/));
  it.each([
    ['[{"Isuid":true,"Isgid":false,"Hostid":100000,"Nsid":0,"Maprange":65536}]', 100_000],
    ["[]", 0],
    ["", 0],
  ])("reads the root id from the map %s", (map, id) => expect(rootIdOf({ config: { "volatile.idmap.next": map } })).toBe(id));
  it("is ours only with our mark", () => {
    expect(isOurs({ config: { "user.cloudlet.id": "shop/cart" } }, spec)).toBe(true);
    expect(isOurs({ config: { "user.cloudlet.id": "shop/other" } }, spec)).toBe(false);
    expect(isOurs({ config: {} }, spec)).toBe(false);
  });
});

describe("what was applied", () => {
  it("does not depend on the order of variables", () => {
    expect(environmentKey({ environment: { A: "1", B: "2" } })).toBe(environmentKey({ environment: { B: "2", A: "1" } }));
  });
  it("is another build where context, command or start differ", () => {
    const build = { digest: "d".repeat(64), command: "make", start: "run" };
    const keys = [build, { ...build, digest: "e".repeat(64) }, { ...build, command: "make all" }, { ...build, start: "run -v" }].map(
      buildKey,
    );
    expect(new Set(keys).size).toBe(4);
  });
});
