import { z } from "zod";
import type { InstanceSpec } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import type { ForeignGuest } from "../types.ts";
import { instanceSchema } from "./client.ts";
import { keys, stateOf, type Config } from "./mapping.ts";

/** A container that was made without us, as LXD tells it, what it has from its profiles included. */
export const foreignInstanceSchema = instanceSchema.extend({
  type: z.string(),
  ephemeral: z.boolean(),
  created_at: z.string(),
  description: z.string().default(""),
  expanded_config: z.record(z.string(), z.string()),
  expanded_devices: z.record(z.string(), z.record(z.string(), z.string())),
});
export type ForeignInstance = z.infer<typeof foreignInstanceSchema>;

type Resources = InstanceSpec["resources"];
type Port = InstanceSpec["ports"][number];
type Device = Record<string, string>;

const imageKey = "volatile.base_image";
const bytesPerMib = 1024 * 1024;
// what a cloudlet has at least
const least = { memoryMib: 32, diskMib: 64 };

/** What a container would be declared as; where it has no limit, that is the whole node. REFUSED where it has what no cloudlet can have. */
export function toForeign(instance: ForeignInstance, node: Resources): Omit<ForeignGuest, "address"> {
  mustFit(instance);
  const { name, expanded_config: config, expanded_devices: devices } = instance;
  return {
    name,
    uuid: uuidOf(instance),
    state: stateOf(instance),
    base: config[imageKey] ?? "",
    resources: {
      cores: coresOf(config["limits.cpu"]) ?? node.cores,
      memoryMib: Math.max(least.memoryMib, memoryOf(config["limits.memory"], node.memoryMib)),
      diskMib: Math.max(least.diskMib, mibOf(rootOf(instance).size) ?? node.diskMib),
    },
    ports: portsOf(devices),
    environment: environmentOf(config),
  };
}

/** Stays when it is renamed or changed; another of the same name has another. */
export function uuidOf({ config, created_at }: Pick<ForeignInstance, "config" | "created_at">): string {
  return config["volatile.uuid"] ?? created_at;
}

/** Its root disk, from its profiles or its own. */
export function rootOf({ expanded_devices }: Pick<ForeignInstance, "expanded_devices">): Device {
  return Object.values(expanded_devices).find(isRoot) ?? {};
}

/** What LXD's sizes mean: `256MiB`, `1GB`, or bytes. undefined where there is none. */
export function mibOf(size: string | undefined): number | undefined {
  const found = /^(\d+) *([kMGTPE]?i?)B?$/.exec(size ?? "");
  if (found === null) return undefined;
  const [, digits, unit = ""] = found;
  const power = "kMGTPE".indexOf(unit.charAt(0).replace("K", "k")) + 1;
  const bytes = Number(digits) * (unit === "" ? 1 : (unit.endsWith("i") ? 1024 : 1000) ** power);
  return bytes === 0 ? undefined : Math.ceil(bytes / bytesPerMib);
}

/** A number, or a set of processors such as `0-2,5`. */
function coresOf(limit: string | undefined): number | undefined {
  if (limit === undefined || limit === "") return undefined;
  return /^\d+$/.test(limit) ? Number(limit) : numbersOf(limit).length;
}

function memoryOf(limit: string | undefined, whole: number): number {
  const percent = /^(\d+)%$/.exec(limit ?? "")?.[1];
  return percent === undefined ? (mibOf(limit) ?? whole) : Math.floor((whole * Number(percent)) / 100);
}

function environmentOf(config: Config): Config {
  const entries = Object.entries(config).filter(([key]) => key.startsWith("environment."));
  return Object.fromEntries(entries.map(([key, value]) => [key.slice("environment.".length), value]));
}

/** Proxies from the node into the container, by their port on the node; one that listens by IPv4 and IPv6 is one. */
function portsOf(devices: Record<string, Device>): Port[] {
  const ports = Object.values(devices).flatMap((device) => proxiedBy(device) ?? []);
  const unique = new Map(ports.map((port) => [`${port.protocol} ${String(port.hostPort)}`, port]));
  return [...unique.values()].sort((a, b) => a.hostPort - b.hostPort || (a.protocol < b.protocol ? -1 : 1));
}

const addressPattern = /^(tcp|udp):(\[[^\]]*\]|[^:[]*):([\d,-]+)$/;

/** undefined = it is no proxy that a published port could take the place of. */
function proxiedBy({ type, listen, connect, bind = "host" }: Device): Port[] | undefined {
  const [from, to] = [addressPattern.exec(listen ?? ""), addressPattern.exec(connect ?? "")];
  if (type !== "proxy" || bind !== "host" || from === null || to === null || from[1] !== to[1]) return undefined;
  const [, protocol, host = "", text = ""] = from;
  if (/^(127\.|\[::1\]$|localhost$)/.test(host)) return undefined;
  const [outside, inside] = [numbersOf(text), numbersOf(to[3] ?? "")];
  return outside.map((hostPort, index) => ({
    port: inside[inside.length === 1 ? 0 : index] ?? hostPort,
    hostPort,
    protocol: protocol === "udp" ? "udp" : "tcp",
  }));
}

function numbersOf(text: string): number[] {
  return text.split(",").flatMap((part) => {
    const [first = 0, last = first] = part.split("-").map(Number);
    return Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index);
  });
}

function isRoot({ type, path, pool }: Device): boolean {
  return type === "disk" && path === "/" && pool !== undefined;
}

/** Each reason with what to do about it. */
function mustFit(instance: ForeignInstance): void {
  const { name, type, ephemeral, expanded_config: config, expanded_devices: devices } = instance;
  const refuse = (code: "REFUSED" | "UNSUPPORTED" | "CONFLICT", has: string, fix: string): never => {
    throw new CloudletError(code, `LXD's "${name}" ${has}`, { fix });
  };
  if (type !== "container")
    refuse(
      "UNSUPPORTED",
      `is a ${type}, and cloudlets of kind lxd are containers`,
      "give its disk as a BaseImage to a hypervisor of kind kvm",
    );
  const id = config[keys.id];
  if (id !== undefined)
    refuse("CONFLICT", `belongs to cloudlet "${id}" of ${config[keys.owner] ?? "another stack"}`, `import it as "${id}" in that stack`);
  if (ephemeral)
    refuse("REFUSED", "is ephemeral, so it would be gone when it stops", `set \`ephemeral: false\` by \`lxc config edit ${name}\``);
  if (!/^[0-9a-f]{64}$/.test(config[imageKey] ?? "")) refuse("REFUSED", "was made from no image", publishIt(name));
  const key = Object.keys(environmentOf(config)).find((each) => !/^[A-Za-z_][A-Za-z0-9_]*$/.test(each));
  if (key !== undefined)
    refuse(
      "REFUSED",
      `has the environment variable "${key}", a name that no cloudlet can have`,
      `\`lxc config unset ${name} environment.${key}\``,
    );
  const nics = Object.entries(devices).filter(([, device]) => device.type === "nic");
  const nic = nics.find(
    ([device, { name: inside }], index) => index > 0 || (inside ?? config[`volatile.${device}.name`] ?? "eth0") !== "eth0",
  );
  if (nic !== undefined)
    refuse(
      "REFUSED",
      `has the network device "${nic[0]}", and a cloudlet has eth0 only`,
      `remove that device, or call it eth0 in the container`,
    );
  const other = Object.entries(devices).find(
    ([, device]) => !isRoot(device) && !["nic", "none"].includes(device.type ?? "") && !proxiedBy(device),
  );
  if (other !== undefined)
    refuse(
      "REFUSED",
      `has the device "${other[0]}" (${Object.entries(other[1])
        .map((entry) => entry.join("="))
        .join(" ")}), which a cloudlet cannot have`,
      `copy what it needs of it into the container, then \`lxc config device remove ${name} ${other[0]}\``,
    );
}

/** What gives a container an image of its own. */
export function publishIt(name: string): string {
  return `make one of it: \`lxc publish ${name} --force\`, which stops it meanwhile, then \`lxc config set ${name} ${imageKey} FINGERPRINT\` with the fingerprint that it prints`;
}
