import { execFile } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { CloudletError } from "../core/errors.ts";
import type { Operator } from "./operator.ts";

/** What the operator's ssh configuration says about one host. */
export interface SshConfig {
  host: string;
  port: number;
  user: string;
  identityFiles: string[];
  /** Files before agent: the configuration wants only the identities it names. */
  identitiesOnly: boolean;
  /** Hops on the way, nearest first, each `[user@]host[:port]`. */
  jumps: string[];
}

export interface ConfigQuery {
  host: string;
  port?: number | undefined;
  user?: string | undefined;
}

/** Asks the ssh client itself, so that Match, Include and wildcards mean what they mean for `ssh`. Without a client, ssh's defaults. */
export async function sshConfig(query: ConfigQuery, operator: Operator, signal?: AbortSignal): Promise<SshConfig> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-ssh-"));
  try {
    const file = join(directory, "config");
    // the first value found wins: root is the login user only where the configuration names none
    await writeFile(file, `Include "${join(operator.home, ".ssh", "config")}"\nInclude /etc/ssh/ssh_config\nHost *\n  User root\n`);
    const flags = [
      ...(query.port === undefined ? [] : ["-p", String(query.port)]),
      ...(query.user === undefined ? [] : ["-l", query.user]),
    ];
    const text = await askClient(["-G", "-F", file, ...flags, "--", query.host], query.host, signal);
    return text === undefined ? withoutClient(query, operator) : parseSshConfig(text, query, operator);
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

/** Reads the answer of `ssh -G`: one `keyword value` per line. */
export function parseSshConfig(text: string, query: ConfigQuery, operator: Operator): SshConfig {
  const values = new Map<string, string[]>();
  for (const line of text.split("\n")) {
    const [, keyword = "", value = ""] = /^(\S+)\s+(.*)$/.exec(line) ?? [];
    if (keyword !== "") values.set(keyword.toLowerCase(), [...(values.get(keyword.toLowerCase()) ?? []), value]);
  }
  const one = (keyword: string): string | undefined => values.get(keyword)?.[0];
  const command = one("proxycommand");
  if (command !== undefined && command !== "none") {
    throw new CloudletError("UNSUPPORTED", `the ssh configuration reaches ${query.host} by ProxyCommand, which is not supported`, {
      fix: "use ProxyJump there, or connection.proxy in the program",
    });
  }
  const jump = one("proxyjump");
  return {
    host: one("hostname") ?? query.host,
    port: Number(one("port") ?? query.port ?? 22),
    user: one("user") ?? query.user ?? "root",
    identityFiles: (values.get("identityfile") ?? []).map((path) => expandHome(path.replace(/^"(.*)"$/, "$1"), operator)),
    identitiesOnly: one("identitiesonly") === "yes",
    jumps: jump === undefined || jump === "none" ? [] : jump.split(","),
  };
}

/** `[user@]host[:port]`, also with `ssh://` in front and IPv6 in brackets. */
export function parseJump(text: string): ConfigQuery {
  const match = /^(?:ssh:\/\/)?(?:(?<user>[^@]+)@)?(?:\[(?<six>[^\]]+)\]|(?<host>[^:]+))(?::(?<port>\d+))?$/.exec(text.trim());
  const host = match?.groups?.["six"] ?? match?.groups?.["host"];
  if (host === undefined)
    throw new CloudletError("INVALID", `ProxyJump "${text}" in the ssh configuration cannot be read`, {
      fix: "write it as user@host:port",
    });
  const port = match?.groups?.["port"];
  return { host, user: match?.groups?.["user"], port: port === undefined ? undefined : Number(port) };
}

function askClient(args: string[], host: string, signal: AbortSignal | undefined): Promise<string | undefined> {
  return new Promise((resolve, reject) => {
    execFile("ssh", args, { timeout: 10_000, ...(signal && { signal }) }, (error, stdout, stderr) => {
      if (error === null) resolve(stdout);
      else if (error.code === "ENOENT") resolve(undefined);
      else if (signal?.aborted) reject(new CloudletError("ABORTED", `connecting to ${host} was cancelled`));
      else
        reject(
          new CloudletError("INVALID", `the ssh configuration for ${host} cannot be read: ${stderr.trim() || error.message}`, {
            fix: `correct what \`ssh -G ${host}\` complains about`,
            cause: error,
          }),
        );
    });
  });
}

function withoutClient(query: ConfigQuery, operator: Operator): SshConfig {
  const names = ["id_ed25519", "id_ecdsa", "id_rsa"];
  return {
    host: query.host,
    port: query.port ?? 22,
    user: query.user ?? "root",
    identityFiles: names.map((name) => join(operator.home, ".ssh", name)),
    identitiesOnly: false,
    jumps: [],
  };
}

function expandHome(path: string, operator: Operator): string {
  return path.startsWith("~/") ? join(operator.home, path.slice(2)) : path;
}
