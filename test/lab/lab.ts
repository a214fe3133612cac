import { randomBytes } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CloudletError } from "../../provider/core/errors.ts";
import { bareHost } from "./bare.ts";
import { LabHost, prepareHost } from "./host.ts";
import { delayHost } from "./delay.ts";
import { bytesCarried, chooseSubnet, connectHost, createSwitch, cutHost, cutPair, healHost, healPair, shapeHost } from "./network.ts";
import { run } from "./run.ts";
import { identify, isAlive, labDirectory, readState, sweep, writeState, type LabState } from "./state.ts";

export interface HostDeclaration<Name extends string = string> {
  name: Name;
  /** An LXD is already there and initialised, as on a machine whose owner uses it. */
  lxd?: boolean;
  /** The packages that commissioning installs are absent, and can be had from a local package source. */
  bare?: boolean;
  /** Its init is systemd, as it is on nearly every gateway; else the host's init runs the scripts of /etc/rc2.d. */
  systemd?: boolean;
}

export interface LabDeclaration<Name extends string = string> {
  /** Short: it is part of the names of interfaces, namespaces and cgroups. */
  name: string;
  hosts: readonly HostDeclaration<Name>[];
  /** The lab stays when this process ends, until `down`. */
  detached?: boolean;
}

/** Real hosts on one machine, on one switch. */
export class Lab<Name extends string = string> {
  readonly name: string;
  readonly hosts: Readonly<Record<Name, LabHost>>;
  /** The private key that every host accepts, and a known_hosts file with every host's key. */
  readonly keyPath: string;
  readonly knownHostsPath: string;

  constructor(state: LabState, hosts: Record<Name, LabHost>) {
    this.name = state.name;
    this.hosts = hosts;
    this.keyPath = join(labDirectory(state.name), "client_key");
    this.knownHostsPath = join(labDirectory(state.name), "known_hosts");
  }

  /** Limits the host's link in both directions; without a rate the limit is lifted. */
  async shape(host: Name, limit: { mbit?: number }): Promise<void> {
    await shapeHost(this.name, host, limit.mbit);
  }

  async cut(host: Name): Promise<void> {
    await cutHost(this.name, host);
  }

  async heal(host: Name): Promise<void> {
    await healHost(this.name, host);
  }

  async cutBetween(a: Name, b: Name): Promise<void> {
    await cutPair(this.name, [a, b]);
  }

  async healBetween(a: Name, b: Name): Promise<void> {
    await healPair(this.name, [a, b]);
  }

  /** Bytes the host has put on its link since the lab began. */
  async bytesSent(host: Name): Promise<number> {
    return bytesCarried(this.name, host, "out");
  }

  /** Bytes that have come to the host over its link since the lab began. */
  async bytesReceived(host: Name): Promise<number> {
    return bytesCarried(this.name, host, "in");
  }

  /** Delays what goes over the host's link by this much each way, until what is returned is called; one host at a time. */
  async delay(host: Name, millis: number): Promise<() => Promise<void>> {
    return delayHost(this.name, host, millis);
  }

  /** Takes everything down and leaves nothing. */
  async close(): Promise<void> {
    await sweep(this.name);
  }
}

/** Builds a lab; one that a killed run left under the same name is removed first. */
export async function createLab<const Name extends string>(declaration: LabDeclaration<Name>): Promise<Lab<Name>> {
  refuseWhereImpossible();
  checkNames(declaration);
  await removeLeftOver(declaration.name);
  const self = identify(process.pid);
  const state: LabState = {
    name: declaration.name,
    subnet: chooseSubnet(declaration.name),
    ...(declaration.detached || self === undefined ? {} : { owner: self }),
    hosts: declaration.hosts.map(({ name, lxd, bare, systemd }, index) => ({
      name,
      index,
      lxd: lxd ?? false,
      bare: bare ?? false,
      systemd: systemd ?? false,
      password: randomBytes(9).toString("hex"),
    })),
    processes: {},
  };
  try {
    return await build(
      state,
      declaration.hosts.map((it) => it.name),
    );
  } catch (error) {
    await sweep(declaration.name);
    throw error;
  }
}

/** A lab that is up already, whoever made it. */
export function openLab(name: string): Lab {
  refuseWhereImpossible();
  const state = readState(name);
  if (state === undefined) throw new CloudletError("NOT_FOUND", `lab ${name} is not up`, { fix: "run `make lab`" });
  return new Lab(
    state,
    handles(
      state,
      state.hosts.map((it) => it.name),
    ),
  );
}

/** One plain line where a lab cannot be, rather than a failure half-way. */
export function refuseWhereImpossible(): void {
  if (process.platform !== "linux") throw new CloudletError("UNSUPPORTED", "the lab needs Linux", { fix: "run it on a Debian 12 machine" });
  if (process.getuid?.() !== 0)
    throw new CloudletError("UNAUTHORIZED", "the lab needs root, as it makes namespaces and mounts", { fix: "run it as root" });
}

async function build<Name extends string>(state: LabState, names: readonly Name[]): Promise<Lab<Name>> {
  const directory = labDirectory(state.name);
  mkdirSync(directory, { recursive: true, mode: 0o755 });
  writeState(state);
  await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", `lab ${state.name}`, "-f", join(directory, "client_key")]);
  const bare = state.hosts.some((it) => it.bare) ? await bareHost() : undefined;
  await createSwitch(state.name, state.subnet);
  for (const host of state.hosts) {
    await prepareHost(state, host, host.bare ? bare : undefined);
    await connectHost(state.name, host.name);
  }
  const lab = new Lab(state, handles(state, names));
  writeKnownHosts(lab);
  // one after the other: each records its processes in the same file
  for (const host of state.hosts) {
    const handle = new LabHost(state, host);
    await handle.start();
    if (host.lxd) await handle.run("lxd init --preseed", { stdin: lxdPreseed, timeoutMillis: 120_000 });
  }
  return lab;
}

function handles<Name extends string>(state: LabState, names: readonly Name[]): Record<Name, LabHost> {
  const entries = state.hosts.map((host) => [host.name, new LabHost(state, host)] as const);
  const made = Object.fromEntries(entries);
  const complete = (it: Record<string, LabHost>): it is Record<Name, LabHost> => names.every((name) => name in it);
  if (!complete(made)) throw new CloudletError("BUG", `lab ${state.name} lacks a host that was declared`);
  return made;
}

function writeKnownHosts(lab: Lab): void {
  const lines = Object.values(lab.hosts).map((it) => `${it.address} ${it.connection.hostKey}\n`);
  writeFileSync(lab.knownHostsPath, lines.join(""));
}

function checkNames({ name, hosts }: LabDeclaration): void {
  if (!/^[a-z][a-z0-9]{0,8}$/.test(name)) {
    throw new CloudletError("INVALID", `"${name}" is no name for a lab`, { fix: "use one to nine lower-case letters and digits" });
  }
  for (const host of hosts) {
    if (!/^[a-z][a-z0-9]{0,13}$/.test(host.name) || ["switch", "operator", "br0", "lo"].includes(host.name)) {
      throw new CloudletError("INVALID", `"${host.name}" is no name for a lab host`, { fix: "use up to 14 lower-case letters and digits" });
    }
  }
  if (new Set(hosts.map((it) => it.name)).size < hosts.length)
    throw new CloudletError("INVALID", `two hosts of lab ${name} have the same name`);
}

async function removeLeftOver(name: string): Promise<void> {
  const owner = readLeftOver(name)?.owner;
  if (owner !== undefined && owner.pid !== process.pid && isAlive(owner)) {
    const program = readFileSync(`/proc/${owner.pid}/cmdline`, "utf8").replaceAll("\0", " ").trim();
    throw new CloudletError("BUSY", `lab ${name} belongs to process ${owner.pid}, which still runs: ${program}`);
  }
  await sweep(name);
}

function readLeftOver(name: string): LabState | undefined {
  try {
    return readState(name);
  } catch {
    // written by another version: its names are enough to remove it
    return undefined;
  }
}

const lxdPreseed = `config: {}
storage_pools:
- name: default
  driver: dir
profiles:
- name: default
  devices:
    root:
      type: disk
      path: /
      pool: default
`;
