import { createHash } from "node:crypto";
import { networkInterfaces } from "node:os";
import { z } from "zod";
import { CloudletError } from "../../provider/core/errors.ts";
import { run, tryRun } from "./run.ts";
import { prefixOf } from "./state.ts";

/** The operator's own end of the lab's switch is at .1, hosts follow from .11 on. */
const operatorAddress = 1;

export function addressOf(subnet: number, index: number): string {
  return `10.99.${subnet}.${11 + index}`;
}

/** Two labs live side by side as each has a subnet of its own, taken from its name. */
export function chooseSubnet(name: string): number {
  const taken = new Set(
    Object.values(networkInterfaces()).flatMap((addresses) => (addresses ?? []).map((it) => it.address.split(".").slice(0, 3).join("."))),
  );
  const first = createHash("sha256").update(name).digest().readUInt16BE() % 250;
  for (let step = 0; step < 250; step++) {
    const subnet = (first + step) % 250;
    if (!taken.has(`10.99.${subnet}`)) return subnet;
  }
  throw new CloudletError("BUSY", "every subnet 10.99.*.0/24 is in use on this machine");
}

export function namespaceOf(lab: string, host: string): string {
  return `${prefixOf(lab)}-${host}`;
}

/** A bridge in a namespace of its own is the switch; one port leads to this machine, where the operator is. */
export async function createSwitch(lab: string, subnet: number): Promise<void> {
  const namespace = namespaceOf(lab, "switch");
  const ip = ["ip", "-n", namespace];
  await run(["ip", "netns", "add", namespace]);
  await run([...ip, "link", "add", "name", "br0", "type", "bridge"]);
  await run([...ip, "link", "set", "br0", "up"]);
  await run(["ip", "link", "add", "name", prefixOf(lab), "type", "veth", "peer", "name", "operator", "netns", namespace]);
  await run([...ip, "link", "set", "operator", "master", "br0", "up"]);
  await run(["ip", "address", "add", `10.99.${subnet}.${operatorAddress}/24`, "dev", prefixOf(lab)]);
  await run(["ip", "link", "set", prefixOf(lab), "up"]);
  const rules =
    "table bridge lab { set cut { type ifname; }; set pairs { type ifname . ifname; }; chain forward { type filter hook forward priority 0; iifname @cut drop; oifname @cut drop; iifname . oifname @pairs drop; }; }";
  await run(["ip", "netns", "exec", namespace, "nft", rules]);
}

/** A link from the host's namespace to the switch, counted and unlimited at first. */
export async function connectHost(lab: string, host: string): Promise<void> {
  const namespace = namespaceOf(lab, host);
  const hub = namespaceOf(lab, "switch");
  await run(["ip", "netns", "add", namespace]);
  await run(["ip", "-n", hub, "link", "add", "name", host, "type", "veth", "peer", "name", "eth0", "netns", namespace]);
  await run(["ip", "-n", hub, "link", "set", host, "master", "br0", "up"]);
  for (const [where, device] of ends(lab, host)) {
    await run(["tc", "-n", where, "qdisc", "add", "dev", device, "root", "handle", "1:", "htb", "default", "1"]);
    await run([
      "tc",
      "-n",
      where,
      "class",
      "add",
      "dev",
      device,
      "parent",
      "1:",
      "classid",
      "1:1",
      "htb",
      "rate",
      "32gbit",
      "quantum",
      "60000",
    ]);
    await run(["tc", "-n", where, "qdisc", "add", "dev", device, "parent", "1:1", "handle", "10:", "pfifo", "limit", "10000"]);
  }
}

/** Limits the link in both directions; `undefined` lifts the limit. */
export async function shapeHost(lab: string, host: string, mbit: number | undefined): Promise<void> {
  for (const [where, device] of ends(lab, host)) {
    const base = ["tc", "-n", where, "qdisc", "replace", "dev", device, "parent", "1:1", "handle", mbit === undefined ? "10:" : "11:"];
    if (mbit === undefined) await run([...base, "pfifo", "limit", "10000"]);
    else await run([...base, "tbf", "rate", `${mbit}mbit`, "burst", `${Math.max(4, Math.ceil(mbit / 2))}k`, "latency", "50ms"]);
  }
}

/** Packets vanish without a word, as with a cable that is cut somewhere on the way. */
export async function cutHost(lab: string, host: string): Promise<void> {
  await change(lab, "add", `cut { "${host}" }`);
}

export async function healHost(lab: string, host: string): Promise<void> {
  await change(lab, "delete", `cut { "${host}" }`);
}

export async function cutPair(lab: string, pair: readonly [string, string]): Promise<void> {
  for (const element of bothWays(pair)) await change(lab, "add", element);
}

export async function healPair(lab: string, pair: readonly [string, string]): Promise<void> {
  for (const element of bothWays(pair)) await change(lab, "delete", element);
}

/** Bytes that have gone over the host's link since the lab began, out of the host or into it. */
export async function bytesCarried(lab: string, host: string, direction: "out" | "in"): Promise<number> {
  const [where, device] = ends(lab, host)[direction === "out" ? 0 : 1];
  const text = await run(["tc", "-n", where, "-s", "-j", "qdisc", "show", "dev", device]);
  const root = z
    .array(z.looseObject({ root: z.boolean().optional(), bytes: z.int() }))
    .parse(JSON.parse(text))
    .find((it) => it.root);
  if (root === undefined) throw new CloudletError("BUG", `the link of ${host} is not counted`);
  return root.bytes;
}

function ends(lab: string, host: string): [[string, string], [string, string]] {
  return [
    [namespaceOf(lab, host), "eth0"],
    [namespaceOf(lab, "switch"), host],
  ];
}

function bothWays([a, b]: readonly [string, string]): string[] {
  return [`pairs { "${a}" . "${b}" }`, `pairs { "${b}" . "${a}" }`];
}

async function change(lab: string, verb: "add" | "delete", element: string): Promise<void> {
  const result = await tryRun(["ip", "netns", "exec", namespaceOf(lab, "switch"), "nft", `${verb} element bridge lab ${element}`]);
  // healing what was never cut is fine
  if (result.exitCode !== 0 && !(verb === "delete" && result.stderr.includes("No such file"))) {
    throw new CloudletError("FAILED", `cannot change the switch of lab ${lab}: ${result.stderr}`);
  }
}
