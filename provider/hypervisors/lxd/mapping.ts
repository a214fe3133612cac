import { createHash } from "node:crypto";
import { join } from "node:path";
import { CloudletError } from "../../core/errors.ts";
import type { InstanceSpec } from "../../agent/protocol.ts";
import type { Guest, GuestState } from "../types.ts";
import type { LxdInstance } from "./client.ts";

/** Our marks in an instance's configuration. The first four say whose it is and what it was made from, the others what was last applied. */
export const keys = {
  id: "user.cloudlet.id",
  owner: "user.cloudlet.owner",
  base: "user.cloudlet.base",
  delta: "user.cloudlet.delta",
  files: "user.cloudlet.files",
  build: "user.cloudlet.build",
  environment: "user.cloudlet.environment",
} as const;

export type Config = Record<string, string>;
export type Devices = Record<string, Record<string, string>>;

/** What an instance's configuration and devices should be. */
export function toLxd(guest: Guest, pool: string): { config: Config; devices: Devices } {
  const { spec, network } = guest;
  const config: Config = {
    "boot.autostart": "false",
    "limits.cpu": String(spec.resources.cores),
    "limits.memory": `${String(spec.resources.memoryMib)}MiB`,
    [keys.id]: spec.id,
    [keys.owner]: spec.owner,
    [keys.base]: spec.base.digest,
  };
  for (const [name, value] of Object.entries(spec.environment)) config[`environment.${name}`] = value;
  const devices: Devices = {
    root: { type: "disk", path: "/", pool, size: `${String(spec.resources.diskMib)}MiB` },
    eth0: { type: "nic", name: "eth0", nictype: "bridged", parent: network.bridge, hwaddr: network.mac },
  };
  for (const volume of guest.volumes)
    devices[volumeDevice(volume.id)] = { type: "disk", path: volume.path, source: volumeData(volume.hostPath) };
  return { config, devices };
}

/** The present configuration brought to the wanted one: what is not ours (volatile keys, devices added by hand) stays. undefined = nothing to do. */
export function merge(
  present: Pick<LxdInstance, "config" | "devices">,
  wanted: { config: Config; devices: Devices },
): { config: Config; devices: Devices } | undefined {
  const config = { ...keep(present.config, (key) => !key.startsWith("environment.")), ...wanted.config };
  const devices = { ...keep(present.devices, (name) => !name.startsWith("volume-")), ...wanted.devices };
  return same(config, present.config) && same(devices, present.devices) ? undefined : { config, devices };
}

const states: Readonly<Record<string, GuestState>> = { Running: "running", Ready: "running", Stopped: "stopped", Frozen: "suspended" };

export function stateOf(instance: Pick<LxdInstance, "name" | "status">): GuestState {
  const state = states[instance.status];
  if (state !== undefined) return state;
  throw new CloudletError("FAILED", `LXD says that ${instance.name} is ${instance.status}`, {
    fix: "look at `lxc info` on the node, then run the same command again",
  });
}

export function isOurs(instance: Pick<LxdInstance, "config">, spec: Pick<InstanceSpec, "id">): boolean {
  return instance.config[keys.id] === spec.id;
}

/** The host's uid (and gid) that is root inside an unprivileged container. */
export function rootIdOf(instance: Pick<LxdInstance, "config">): number {
  const map = instance.config["volatile.idmap.next"] ?? instance.config["volatile.idmap.current"] ?? "[]";
  const entries: unknown = JSON.parse(map === "" ? "[]" : map);
  if (!Array.isArray(entries)) return 0;
  for (const entry of entries as unknown[]) {
    if (
      typeof entry === "object" &&
      entry !== null &&
      "Isuid" in entry &&
      entry.Isuid === true &&
      "Nsid" in entry &&
      entry.Nsid === 0 &&
      "Hostid" in entry &&
      typeof entry.Hostid === "number"
    )
      return entry.Hostid;
  }
  return 0;
}

/** Short digests by which an applied aspect is recognised. */
export function environmentKey(spec: Pick<InstanceSpec, "environment">): string {
  return digest(Object.entries(spec.environment).sort(([a], [b]) => (a < b ? -1 : 1)));
}
export function filesKey(spec: Pick<InstanceSpec, "files">): string {
  return digest(spec.files);
}
export function buildKey(build: NonNullable<InstanceSpec["build"]>): string {
  return `${build.digest.slice(0, 16)}-${digest([build.digest, build.command ?? "", build.start])}`;
}

/** A volume's content lies beside the note that says which ids its owners are counted from. */
export function volumeData(hostPath: string): string {
  return join(hostPath, "data");
}

function volumeDevice(id: string): string {
  return `volume-${digest(id)}`;
}

function digest(value: unknown): string {
  return createHash("sha256").update(JSON.stringify(value)).digest("hex").slice(0, 16);
}

function keep<V>(record: Record<string, V>, wanted: (key: string) => boolean): Record<string, V> {
  return Object.fromEntries(Object.entries(record).filter(([key]) => wanted(key)));
}

function same(a: Record<string, unknown>, b: Record<string, unknown>): boolean {
  return JSON.stringify(sorted(a)) === JSON.stringify(sorted(b));
}

function sorted(value: unknown): unknown {
  if (typeof value !== "object" || value === null) return value;
  return Object.entries(value)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, inner]) => [key, sorted(inner)]);
}
