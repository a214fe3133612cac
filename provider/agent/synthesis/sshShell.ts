import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { CloudletError } from "../../core/errors.ts";
import { isMissing } from "../durable.ts";
import { run } from "../process.ts";
import type { Command } from "../process.ts";
import type { Login } from "../protocol.ts";
import { carried } from "./guestShell.ts";
import type { GuestShell } from "./guestShell.ts";

export interface SshTarget {
  address: string;
  ssh: NonNullable<Login["ssh"]>;
  /** Where the key lies for as long as the shell is open. */
  directory: string;
}

const greetMillis = 30_000;
const connectSeconds = 10;

/** A guest's SSH server, by the node's own client. Fails where it does not let the user in, or not yet. */
export async function openSshShell(target: SshTarget, signal: AbortSignal): Promise<GuestShell> {
  const { ssh, directory } = target;
  const secrets = await mkdtemp(join(directory, "login-"));
  const close = (): Promise<void> => rm(secrets, { recursive: true, force: true });
  try {
    await writeFile(join(secrets, "key"), `${ssh.privateKey.trim()}\n`, { mode: 0o600 });
    const shell: GuestShell = {
      name: `SSH as ${ssh.user}`,
      seeded: false,
      run: (script, options) => runScript(commandTo(target, secrets), script, options),
      close,
    };
    await shell.run("true", { timeoutMillis: greetMillis, signal }).catch((cause: unknown) => {
      if (!isMissing(cause instanceof CloudletError ? cause.cause : undefined)) throw cause;
      throw new CloudletError("UNSUPPORTED", "this node has no ssh client", { cause, fix: "install the package openssh-client on it" });
    });
    return shell;
  } catch (error) {
    await close();
    throw error;
  }
}

async function runScript(
  [program, ...args]: Command,
  script: string,
  options: { timeoutMillis: number; signal: AbortSignal },
): ReturnType<GuestShell["run"]> {
  const { command, resultIn } = carried();
  const remote = `F=$(mktemp) && cat >"$F" && { ${command}\n}`;
  const okCodes = Array.from({ length: 256 }, (_, code) => code);
  const { stdout, stderr } = await run([program, ...args, remote], { ...options, stdin: script, okCodes });
  const result = resultIn(stdout);
  if (result !== undefined) return result;
  throw new CloudletError("UNREACHABLE", `ssh to the guest: ${stderr.trim().split("\n").slice(-3).join("; ").slice(-500) || "no answer"}`);
}

/** Nothing secret is among the arguments. The host key is that of a guest that nobody knew before: pinned from the first contact on. */
function commandTo({ address, ssh }: SshTarget, secrets: string): Command {
  const options = {
    BatchMode: "yes",
    ConnectTimeout: String(connectSeconds),
    IdentitiesOnly: "yes",
    IdentityAgent: "none",
    LogLevel: "ERROR",
    PreferredAuthentications: "publickey",
    ServerAliveCountMax: "6",
    ServerAliveInterval: "10",
    StrictHostKeyChecking: "accept-new",
    UserKnownHostsFile: join(secrets, "known_hosts"),
  };
  const given = Object.entries(options).flatMap(([name, value]) => ["-o", `${name}=${value}`]);
  return ["ssh", "-F", "none", "-T", "-i", join(secrets, "key"), ...given, "-p", String(ssh.port), "-l", ssh.user, "--", address];
}
