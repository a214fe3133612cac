import { randomBytes } from "node:crypto";
import { spawn } from "node:child_process";
import { closeSync, copyFileSync, existsSync, mkdirSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CloudletError } from "../../provider/core/errors.ts";
import type { BareHost } from "./bare.ts";
import { addressOf, namespaceOf } from "./network.ts";
import { run, tryRun, type RunOptions, type RunResult } from "./run.ts";
import {
  cgroupRoots,
  identify,
  killProcesses,
  labDirectory,
  makeCgroup,
  prefixOf,
  readState,
  removeCgroup,
  writeState,
  type HostState,
  type LabState,
  type Process,
} from "./state.ts";

export interface HostConnection {
  host: string;
  port: number;
  user: string;
  privateKey: string;
  hostKey: string;
}

/** One host of a lab: a machine as far as anybody on it or on the network can tell. */
export class LabHost {
  readonly name: string;
  readonly address: string;
  /** Root's way in; `operator`, who has password-less sudo, has the same key and also this `password`. */
  readonly connection: HostConnection;
  readonly password: string;
  /** The upper layer of its root: whatever was changed on the host is below it. */
  readonly rootUpper: string;
  readonly #lab: string;
  readonly #directory: string;

  constructor(state: LabState, host: HostState) {
    this.name = host.name;
    this.#lab = state.name;
    this.#directory = join(labDirectory(state.name), host.name);
    this.address = addressOf(state.subnet, host.index);
    this.password = host.password;
    this.rootUpper = join(this.#directory, "upper");
    this.connection = {
      host: this.address,
      port: 22,
      user: "root",
      privateKey: readFileSync(join(labDirectory(state.name), "client_key"), "utf8"),
      hostKey: readFileSync(join(this.#directory, "files/host_key.pub"), "utf8").trim().split(" ").slice(0, 2).join(" "),
    };
  }

  /** The host's own pid 1, and the process beside it, as this machine sees them; empty when the host is off. */
  get processes(): Process[] {
    return (readState(this.#lab)?.processes[this.name] ?? []).filter((it) => identify(it.pid)?.start === it.start);
  }

  get pids(): number[] {
    return this.processes.map((it) => it.pid);
  }

  /** Runs a command on the host without SSH; a string goes through a shell. The exit code is an answer, not an error. */
  async exec(command: string | readonly string[], options: RunOptions = {}): Promise<RunResult> {
    const [init] = this.pids;
    if (init === undefined) throw new CloudletError("UNREACHABLE", `lab host ${this.name} is off`);
    const argv = typeof command === "string" ? ["/bin/sh", "-c", command] : command;
    const enter = ["nsenter", "-t", String(init), "-m", "-n", "-p", "-u", "-i", "-C", "-r", "-w", "--"];
    return tryRun(this.#inCgroup([...enter, "/usr/bin/env", "-i", ...hostEnvironment, ...argv]), options);
  }

  /** Like exec, for a command that must succeed; gives what it printed. */
  async run(command: string, options: RunOptions = {}): Promise<string> {
    const result = await this.exec(command, options);
    if (result.exitCode === 0) return result.stdout;
    throw new CloudletError(
      "FAILED",
      `on ${this.name}: ${command.slice(0, 300)} ended with ${result.exitCode}: ${result.stderr || result.stdout}`,
    );
  }

  /** Boots the host; returns when its services are up. */
  async start(): Promise<void> {
    if (this.pids.length > 0) return;
    for (const path of this.#cgroups()) makeCgroup(path);
    const log = openSync(join(this.#directory, "boot.log"), "a");
    const namespace = `/run/netns/${namespaceOf(this.#lab, this.name)}`;
    const boot = [join(this.#directory, "files/boot.sh"), this.#directory, this.name];
    const argv = this.#inCgroup(["nsenter", `--net=${namespace}`, "unshare", "-m", "-p", "-f", "-u", "-i", "-C", "/bin/sh", ...boot]);
    const child = spawn(argv[0] ?? "", argv.slice(1), { detached: true, stdio: ["ignore", log, log], cwd: "/" });
    child.unref();
    closeSync(log);
    const init = await this.#firstChild(child.pid);
    this.#record([init, child.pid ?? 0]);
    await this.#ready(init);
  }

  /** Pulls the plug: every process ends at once, files stay. */
  async kill(): Promise<void> {
    await killProcesses(this.processes);
    for (const path of this.#cgroups()) await removeCgroup(path);
    await this.#clearNetwork();
    this.#record([]);
  }

  /** Pulls the plug and boots again on the same files. */
  async restart(): Promise<void> {
    await this.kill();
    await this.start();
  }

  /** Links, addresses and packet rules do not outlive a reboot. */
  async #clearNetwork(): Promise<void> {
    const namespace = namespaceOf(this.#lab, this.name);
    const links = z
      .array(z.looseObject({ ifname: z.string() }))
      .parse(JSON.parse(await run(["ip", "-n", namespace, "-j", "link", "show"])));
    for (const { ifname } of links)
      if (ifname !== "lo" && ifname !== "eth0") await tryRun(["ip", "-n", namespace, "link", "delete", ifname]);
    await run(["ip", "-n", namespace, "address", "flush", "dev", "eth0"]);
    await run(["ip", "netns", "exec", namespace, "nft", "flush", "ruleset"]);
  }

  #cgroups(): string[] {
    return cgroupRoots().map((root) => join(root, prefixOf(this.#lab), this.name));
  }

  /** What is started here belongs to the host's own cgroups, so that it goes down with the host. */
  #inCgroup(argv: readonly string[]): string[] {
    const join = this.#cgroups().map((path) => `echo $$ >'${path}/cgroup.procs' || echo $$ >'${path}/init.scope/cgroup.procs'`);
    return ["/bin/sh", "-c", `{ ${join.join("; ")}; } 2>/dev/null; exec "$@"`, "sh", ...argv];
  }

  #record(pids: number[]): void {
    const state = readState(this.#lab);
    if (state === undefined) throw new CloudletError("NOT_FOUND", `lab ${this.#lab} is not up`);
    state.processes[this.name] = pids.map(identify).filter((it) => it !== undefined);
    writeState(state);
  }

  async #firstChild(parent: number | undefined): Promise<number> {
    const deadline = Date.now() + 10_000;
    while (Date.now() < deadline) {
      const file = `/proc/${parent}/task/${parent}/children`;
      const child = existsSync(file) ? Number(readFileSync(file, "utf8").split(" ")[0]) : 0;
      if (child > 0) return child;
      await sleep(5);
    }
    throw new CloudletError("TIMEOUT", `lab host ${this.name} does not start: ${this.#log()}`);
  }

  async #ready(init: number): Promise<void> {
    const deadline = Date.now() + 60_000;
    while (!existsSync(`/proc/${init}/root/run/clab-ready`)) {
      if (Date.now() > deadline || identify(init) === undefined) {
        throw new CloudletError("TIMEOUT", `lab host ${this.name} does not boot: ${this.#log()}`);
      }
      await sleep(10);
    }
  }

  #log(): string {
    return readFileSync(join(this.#directory, "boot.log"), "utf8").slice(-2000);
  }
}

const hostEnvironment = ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"];

/** Lays out the directory of a new host; its root is filled at its first boot. */
export async function prepareHost(state: LabState, host: HostState, bare: BareHost | undefined): Promise<void> {
  const directory = join(labDirectory(state.name), host.name);
  const files = join(directory, "files");
  for (const it of ["upper", "work", "root", "files", "data/cloudlet", "data/lxd"]) mkdirSync(join(directory, it), { recursive: true });
  for (const it of ["boot.sh", "init.sh", "provision.sh"]) copyFileSync(join(import.meta.dirname, it), join(files, it));
  copyFileSync(join(labDirectory(state.name), "client_key.pub"), join(files, "client_key.pub"));
  await run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", host.name, "-f", join(files, "host_key")]);
  const put = (name: string, text: string): void => writeFileSync(join(files, name), text);
  put("sshd_config", sshdConfig);
  put("address", `${addressOf(state.subnet, host.index)}/24`);
  put("hostname", `${host.name}\n`);
  put("machine-id", `${randomBytes(16).toString("hex")}\n`);
  put(
    "hosts",
    ["127.0.0.1 localhost", "::1 localhost", ...state.hosts.map((it) => `${addressOf(state.subnet, it.index)} ${it.name}`), ""].join("\n"),
  );
  put("password", (await run(["openssl", "passwd", "-6", "-stdin"], { stdin: host.password })).trim());
  if (host.lxd) put("lxd", "");
  if (host.systemd) put("systemd", "");
  if (bare !== undefined) {
    // copied, as an overlay takes no two lower layers of which one is inside the other
    await run(["cp", "-a", `${bare.layer}/.`, join(directory, "upper")]);
    put("repository.list", `deb [trusted=yes] file:${bare.repository} ./\n`);
  }
  // a machine whose Node lives in a home directory still has hosts with a Node
  if (bare?.offersNode !== true && !existsSync("/usr/bin/node") && !existsSync("/usr/local/bin/node"))
    copyFileSync(process.execPath, join(files, "node"));
}

const sshdConfig = `Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
PermitRootLogin yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
PidFile /run/sshd.pid
AllowTcpForwarding yes
AllowStreamLocalForwarding yes
Subsystem sftp internal-sftp
`;
