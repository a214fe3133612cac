import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { graceMillis, nftablesText, passages, publications } from "../../../provider/agent/networkText.ts";
import type { InstanceRecord } from "../../../provider/agent/records.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { digestText, spec } from "../fixture.ts";
import { eventually } from "./rig.ts";

const guest = "10.87.9.9";
const ports = (["tcp", "udp"] as const).map((protocol) => ({ port: 80, hostPort: 8080, protocol }));

function record(change: Partial<InstanceRecord>): InstanceRecord {
  return {
    spec: spec(digestText("base"), { ports }),
    ownership: { epoch: 1, role: "owner" },
    network: { mac: "02:00:0a:57:09:09", address: guest },
    complete: true,
    restartPending: false,
    ...change,
  };
}

/** Answers each line and each datagram with a name and who has asked. */
const server = (name: string, port: number): string => `
  require("net").createServer((s) => s.on("error", () => {}).on("data", () => s.write("${name} to " + s.remoteAddress))).listen(${String(port)}, "0.0.0.0");
  const u = require("dgram").createSocket("udp4");
  u.on("message", (_, from) => u.send("${name} to " + from.address, from.port, from.address));
  u.bind(${String(port)}, () => console.log("listens"));`;

/** Asks again and again by one TCP connection and from one UDP port, and writes down what it hears when that changes. */
const client = (address: string): string => `
  const heard = {}; const note = (what, text) => { if (heard[what] !== text) console.log(what + " " + (heard[what] = text)); };
  const s = require("net").connect(8080, "${address}");
  s.on("data", (text) => note("tcp", String(text))).on("error", (e) => note("tcp", e.code));
  const u = require("dgram").createSocket("udp4");
  u.on("message", (text) => note("udp", String(text))).on("error", (e) => note("udp", e.code));
  u.connect(8080, "${address}", () => setInterval(() => { u.send("?", (e) => e && note("udp", e.code)); if (!s.destroyed) s.write("?"); }, 100));`;

describe("clients of a node that a cloudlet has left, with the kernel's own packet rules", () => {
  let lab: Lab<"client" | "source" | "target">;
  beforeAll(async () => {
    lab = await createLab({ name: "endpass", hosts: [{ name: "client" }, { name: "source" }, { name: "target" }] });
    // three clients are told often that nobody listens to their datagrams, and a kernel tells a host that once a second only
    await lab.hosts.source.run(`echo 1 >/proc/sys/net/ipv4/ip_forward; echo 0 >/proc/sys/net/ipv4/icmp_ratelimit
      ip link add cloudlet0 type bridge && ip address add 10.87.0.1/16 dev cloudlet0 && ip link set cloudlet0 up
      ip netns add guest && ip link add outer type veth peer name inner netns guest && ip link set outer master cloudlet0 up
      ip -n guest link set lo up && ip -n guest link set inner up && ip -n guest address add ${guest}/16 dev inner && ip -n guest route add default via 10.87.0.1`);
    await start("source", server("guest", 80), { log: "/tmp/server", inside: "ip netns exec guest" });
    await start("target", server("target", 9090), { log: "/tmp/server" });
    // whoever asks before is refused, and asks by that connection no more
    for (const host of [lab.hosts.source, lab.hosts.target])
      await eventually(async () => expect(await host.run("cat /tmp/server")).toBe("listens\n"));
    await publish(record({}));
  });
  afterAll(() => lab?.close());

  /** A program that runs on, in a network namespace of the host if one is named. */
  const start = (host: "client" | "source" | "target", program: string, { log = "/dev/null", inside = "" } = {}) =>
    lab.hosts[host].run(`cat >/tmp/program.js; setsid ${inside} node /tmp/program.js >${log} 2>&1 </dev/null &`, { stdin: program });
  const publish = (now: InstanceRecord, at = Date.now()) =>
    lab.hosts.source.run("nft -f -", { stdin: nftablesText(publications([now]), passages([now], at)) });
  const left = (since: number): InstanceRecord =>
    record({
      ownership: { epoch: 2, role: "released" },
      forward: {
        address: lab.hosts.target.address,
        ports: (["tcp", "udp"] as const).map((protocol) => ({ protocol, hostPort: 8080, targetPort: 9090 })),
        since,
      },
    });
  const begin = async (name: string) => start("client", client(lab.hosts.source.address), { log: `/tmp/${name}` });
  const heard = async (name: string) => (await lab.hosts.client.run(`cat /tmp/${name}`)).trim().split("\n").sort();

  it("reach the new place, open connections are reset, and all of that ends by itself when the time is over", async () => {
    const { client: asking, source } = lab.hosts;
    await begin("before");
    const atGuest = [`tcp guest to ${asking.address}`, `udp guest to ${asking.address}`];
    await eventually(async () => expect(await heard("before")).toEqual(atGuest));

    await publish(left(Date.now()));
    await lab.hosts.source.run("ip netns delete guest");
    await begin("during");
    const atTarget = [`tcp target to ${source.address}`, `udp target to ${source.address}`];
    await eventually(async () => expect(await heard("during")).toEqual(atTarget));
    await eventually(async () =>
      expect(await heard("before")).toEqual(["tcp ECONNRESET", ...atGuest, `udp target to ${source.address}`].sort()),
    );

    // nobody touches the rules again
    const now = Date.now();
    await publish(left(now), now + graceMillis - 2_000);
    expect(await heard("during")).toEqual(atTarget);
    await eventually(async () => expect(await heard("during")).toEqual([...atTarget, "tcp ECONNRESET", "udp ECONNREFUSED"].sort()));
    await begin("after");
    await eventually(async () => expect(await heard("after")).toEqual(["tcp ECONNREFUSED", "udp ECONNREFUSED"]));
  });
});
