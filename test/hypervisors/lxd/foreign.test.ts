import { describe, expect, it } from "vitest";
import { foreignInstanceSchema, mibOf, toForeign } from "../../../provider/hypervisors/lxd/foreign.ts";

const fingerprint = "f".repeat(64);
const node = { cores: 8, memoryMib: 16_000, diskMib: 50_000 };
const root = { type: "disk", path: "/", pool: "default" };

interface Changes {
  config?: Record<string, string>;
  devices?: Record<string, Record<string, string>>;
  type?: string;
  ephemeral?: boolean;
  status?: string;
}

const container = ({ config = {}, devices = {}, ...rest }: Changes = {}) => {
  const whole = { "volatile.base_image": fingerprint, "volatile.uuid": "1-2", ...config };
  return foreignInstanceSchema.parse({
    name: "web",
    status: "Running",
    architecture: "x86_64",
    type: "container",
    ephemeral: false,
    created_at: "2026-01-01T00:00:00Z",
    config: whole,
    devices,
    expanded_config: whole,
    expanded_devices: { root, ...devices },
    ...rest,
  });
};
const found = (changes?: Changes) => toForeign(container(changes), node);

describe("what a container made by others would be declared as", () => {
  it("has the whole node where nothing limits it", () => {
    expect(found()).toEqual({ name: "web", uuid: "1-2", state: "running", base: fingerprint, resources: node, ports: [], environment: {} });
  });

  it.each<[string, Changes, object]>([
    ["its limits", { config: { "limits.cpu": "2", "limits.memory": "256MiB" } }, { resources: { ...node, cores: 2, memoryMib: 256 } }],
    ["as many cores as it is pinned to", { config: { "limits.cpu": "0-2,5" } }, { resources: { ...node, cores: 4 } }],
    ["its part of the memory", { config: { "limits.memory": "25%" } }, { resources: { ...node, memoryMib: 4000 } }],
    ["the least that a cloudlet has", { config: { "limits.memory": "8MiB" } }, { resources: { ...node, memoryMib: 32 } }],
    ["the size of its disk", { devices: { root: { ...root, size: "10GB" } } }, { resources: { ...node, diskMib: 9537 } }],
    ["its environment", { config: { "environment.MODE": "edge" } }, { environment: { MODE: "edge" } }],
    ["that it is stopped", { status: "Stopped" }, { state: "stopped" }],
    ["that it is suspended", { status: "Frozen" }, { state: "suspended" }],
  ])("has %s", (_, changes, expected) => {
    expect(found(changes)).toMatchObject(expected);
  });

  it("has proxies from the node as ports, each once, by their number", () => {
    const proxy = (listen: string, connect: string, more = {}) => ({ type: "proxy", listen, connect, ...more });
    const devices = {
      web: proxy("tcp:0.0.0.0:8080", "tcp:127.0.0.1:80"),
      web6: proxy("tcp:[::]:8080", "tcp:[::1]:80"),
      dns: proxy("udp:192.0.2.1:53", "udp:10.0.0.2:5353", { nat: "true" }),
      many: proxy("tcp:0.0.0.0:9000-9001,9005", "tcp:127.0.0.1:7000-7001,7005", { bind: "host" }),
      one: proxy("tcp:0.0.0.0:9100-9101", "tcp:127.0.0.1:70"),
    };
    expect(found({ devices }).ports).toEqual([
      { port: 5353, hostPort: 53, protocol: "udp" },
      { port: 80, hostPort: 8080, protocol: "tcp" },
      { port: 7000, hostPort: 9000, protocol: "tcp" },
      { port: 7001, hostPort: 9001, protocol: "tcp" },
      { port: 7005, hostPort: 9005, protocol: "tcp" },
      { port: 70, hostPort: 9100, protocol: "tcp" },
      { port: 70, hostPort: 9101, protocol: "tcp" },
    ]);
  });

  it.each<[string, Changes, { code: string; message: RegExp; fix: RegExp }]>([
    [
      "a virtual machine",
      { type: "virtual-machine" },
      { code: "UNSUPPORTED", message: /is a virtual-machine/, fix: /BaseImage .* kind kvm/ },
    ],
    [
      "another's cloudlet",
      { config: { "user.cloudlet.id": "shop/web", "user.cloudlet.owner": "p/s" } },
      { code: "CONFLICT", message: /belongs to cloudlet "shop\/web" of p\/s/, fix: /import it as "shop\/web" in that stack/ },
    ],
    ["an ephemeral one", { ephemeral: true }, { code: "REFUSED", message: /ephemeral/, fix: /lxc config edit web/ }],
    [
      "one without an image",
      { config: { "volatile.base_image": "" } },
      { code: "REFUSED", message: /from no image/, fix: /lxc publish web/ },
    ],
    [
      "a variable that no cloudlet can have",
      { config: { "environment.a-b": "1" } },
      { code: "REFUSED", message: /"a-b"/, fix: /lxc config unset web environment.a-b/ },
    ],
    [
      "a second network",
      { devices: { eth0: { type: "nic", name: "eth0" }, eth1: { type: "nic", name: "eth1" } } },
      { code: "REFUSED", message: /"eth1", and a cloudlet has eth0 only/, fix: /remove/ },
    ],
    [
      "a network of another name",
      { devices: { net: { type: "nic" } }, config: { "volatile.net.name": "ens3" } },
      { code: "REFUSED", message: /"net"/, fix: /eth0/ },
    ],
    [
      "a directory of the node",
      { devices: { data: { type: "disk", source: "/srv", path: "/data" } } },
      { code: "REFUSED", message: /"data" \(type=disk source=\/srv path=\/data\)/, fix: /lxc config device remove web data/ },
    ],
    [
      "a proxy for the node alone",
      { devices: { admin: { type: "proxy", listen: "tcp:127.0.0.1:90", connect: "tcp:127.0.0.1:90" } } },
      { code: "REFUSED", message: /"admin"/, fix: /remove web admin/ },
    ],
    [
      "a proxy out of the container",
      { devices: { out: { type: "proxy", bind: "instance", listen: "tcp:0.0.0.0:90", connect: "tcp:127.0.0.1:90" } } },
      { code: "REFUSED", message: /"out"/, fix: /remove web out/ },
    ],
  ])("refuses %s, with what to do", (_, changes, { code, message, fix }) => {
    expect(() => found(changes)).toThrow(
      expect.objectContaining({ code, message: expect.stringMatching(message), fix: expect.stringMatching(fix) }),
    );
  });

  it.each<[string | undefined, number | undefined]>([
    ["268435456", 256],
    ["256MB", 245],
    ["1GiB", 1024],
    ["1TB", 953_675],
    ["500kB", 1],
    ["2048 MiB", 2048],
    ["", undefined],
    ["0", undefined],
    [undefined, undefined],
  ])("takes %s for %s MiB", (text, expected) => {
    expect(mibOf(text)).toBe(expected);
  });
});
