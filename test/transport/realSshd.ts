import { execFile, spawn, type ChildProcess } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as pause } from "node:timers/promises";
import { promisify } from "node:util";
import type { Operator } from "../../provider/transport/operator.ts";
import { freePort } from "../freePort.ts";

export const execute = promisify(execFile);

/** A real sshd on loopback, with keys, configuration and port of its own. */
export interface RealSshd {
  directory: string;
  port: number;
  /** `type base64` */
  hostKey: string;
  privateKey: string;
  keyPath: string;
  operator: Operator;
  /** Ends all connections; the server stays. */
  drop(): Promise<void>;
  stop(): Promise<void>;
}

export function sshdMissing(): string | undefined {
  return process.getuid?.() === 0 ? undefined : "needs root, as sshd changes users";
}

/** `setup` runs before sshd in a mount namespace where /etc and /var/lib are copies, so users may be made there freely. */
export async function startSshd({ setup, extra = [] }: { setup?: string; extra?: string[] } = {}): Promise<RealSshd> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-sshd-"));
  const file = (name: string): string => join(directory, name);
  for (const [name, type] of [
    ["host_ed25519", "ed25519"],
    ["host_ecdsa", "ecdsa"],
    ["client", "ed25519"],
  ] as const) {
    await execute("ssh-keygen", ["-q", "-t", type, "-N", "", "-C", "", "-f", file(name)]);
  }
  // sshd wants its privilege separation directory
  await mkdir("/run/sshd", { recursive: true });
  await execute("chmod", ["755", directory]);
  await execute("cp", [file("client.pub"), file("authorized_keys")]);
  const port = await freePort();
  const config = [
    `Port ${String(port)}`,
    "ListenAddress 127.0.0.1",
    `HostKey ${file("host_ed25519")}`,
    `HostKey ${file("host_ecdsa")}`,
    `AuthorizedKeysFile ${file("authorized_keys")}`,
    `PidFile ${file("pid")}`,
    "StrictModes no",
    "UsePAM no",
    "PermitRootLogin yes",
    "PasswordAuthentication no",
    ...extra,
  ];
  await writeFile(file("sshd_config"), config.join("\n") + "\n");
  await writeFile(file("start"), setup === undefined ? "" : `${privateCopies(file("copies"))}\n${setup}\n`);
  const command = `set -e; . ${file("start")}; exec /usr/sbin/sshd -D -e -f ${file("sshd_config")}`;
  const sshd = spawn("unshare", ["-m", "sh", "-c", command], { stdio: "ignore" });
  await answering(port, "sshd");
  return {
    directory,
    port,
    hostKey: (await readFile(file("host_ed25519.pub"), "utf8")).trim(),
    privateKey: await readFile(file("client"), "utf8"),
    keyPath: file("client"),
    operator: { home: directory, agentSocketPath: undefined, knownHostsPaths: [file("known_hosts")] },
    drop: () => endChildren(sshd),
    async stop() {
      await endChildren(sshd);
      sshd.kill();
      await rm(directory, { recursive: true, force: true });
    },
  };
}

function privateCopies(directory: string): string {
  const overlay = (path: string, name: string): string => `mkdir -p ${directory}/${name}/up ${directory}/${name}/work
mount -t overlay -o lowerdir=${path},upperdir=${directory}/${name}/up,workdir=${directory}/${name}/work overlay ${path}`;
  return `mkdir -p ${directory}\nmount -t tmpfs none ${directory}\n${overlay("/etc", "etc")}\n${overlay("/var/lib", "lib")}`;
}

export async function answering(port: number, what: string): Promise<void> {
  for (let attempt = 0; attempt < 100; attempt += 1) {
    const open = await new Promise<boolean>((resolve) => {
      const socket = connect(port, "127.0.0.1");
      socket.once("error", () => resolve(false));
      socket.once("connect", () => {
        socket.destroy();
        resolve(true);
      });
    });
    if (open) return;
    await pause(50);
  }
  throw new Error(`${what} did not listen on port ${String(port)} within 5 s`);
}

async function endChildren(sshd: ChildProcess): Promise<void> {
  const children = await readFile(`/proc/${String(sshd.pid)}/task/${String(sshd.pid)}/children`, "utf8").catch(() => "");
  for (const pid of children.split(" ").filter((word) => word !== "")) {
    try {
      process.kill(Number(pid), "SIGKILL");
    } catch {
      // already gone
    }
  }
}
