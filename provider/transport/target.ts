import { readFile } from "node:fs/promises";
import { CloudletError } from "../core/errors.ts";
import { knownHostKeys, parseHostKey, type Trust } from "./hostKey.ts";
import type { Operator } from "./operator.ts";
import { parseJump, sshConfig, type SshConfig } from "./sshConfig.ts";
import type { ConnectionSettings } from "./types.ts";

export type Credential =
  | { kind: "key"; text: string; passphrase: string | undefined; from: string; required: boolean }
  | { kind: "agent"; socketPath: string }
  | { kind: "password"; password: string };

/** Everything needed to dial: settings, ssh configuration and known hosts put together. */
export interface Target {
  /** `user@host:port`. */
  label: string;
  host: string;
  port: number;
  user: string;
  credentials: Credential[];
  trust: Trust;
  /** For one attempt. */
  timeoutMillis: number;
  attempts: number;
  /** No new attempt after this time. */
  budgetMillis: number;
  via: Target | undefined;
}

export interface Surroundings {
  operator: Operator;
  signal?: AbortSignal | undefined;
}

export async function resolveTarget(settings: ConnectionSettings, around: Surroundings): Promise<Target> {
  const via = settings.proxy && (await resolveTarget(settings.proxy, around));
  const given = givenCredentials(settings);
  if (given.length > 0)
    return assemble(
      settings,
      { host: settings.host, port: settings.port ?? 22, user: settings.user ?? "root", credentials: given, via },
      around,
    );
  const config = await sshConfig(settings, around.operator, around.signal);
  const credentials = await ownCredentials(config, around.operator);
  return assemble(settings, { ...config, credentials, via: via ?? (await throughJumps(config.jumps, around)) }, around);
}

async function assemble(
  settings: ConnectionSettings,
  place: Pick<Target, "host" | "port" | "user" | "credentials" | "via">,
  { operator }: Surroundings,
): Promise<Target> {
  const { host, port, user, credentials, via } = place;
  const timeoutMillis = (settings.perDialTimeout ?? 15) * 1000;
  return {
    label: `${user}@${host.includes(":") ? `[${host}]` : host}:${String(port)}`,
    host,
    port,
    user,
    credentials,
    trust: await trustFor(settings, place, operator),
    timeoutMillis,
    attempts: settings.dialErrorLimit ?? 10,
    // a silent host fails after two attempts unless the user asked for a number of them
    budgetMillis: settings.dialErrorLimit === undefined ? Math.min(2 * timeoutMillis, 30_000) : Infinity,
    via,
  };
}

/** `a,b` means: to a, from there to b, from there on. Only the first may have hops of its own. */
async function throughJumps(jumps: string[], around: Surroundings, depth = 0): Promise<Target | undefined> {
  if (depth > 4)
    throw new CloudletError("INVALID", "the ssh configuration has more than five ProxyJump hops, or a circle of them", {
      fix: "correct ProxyJump in ~/.ssh/config",
    });
  let via: Target | undefined;
  for (const [index, jump] of jumps.entries()) {
    const query = parseJump(jump);
    const config = await sshConfig(query, around.operator, around.signal);
    const credentials = await ownCredentials(config, around.operator);
    via = await assemble(
      query,
      { ...config, credentials, via: index === 0 ? await throughJumps(config.jumps, around, depth + 1) : via },
      around,
    );
  }
  return via;
}

function givenCredentials({ privateKey, privateKeyPassword, agentSocketPath, password }: ConnectionSettings): Credential[] {
  const credentials: Credential[] = [];
  if (privateKey)
    credentials.push({ kind: "key", text: privateKey, passphrase: privateKeyPassword, from: "connection.privateKey", required: true });
  if (agentSocketPath) credentials.push({ kind: "agent", socketPath: agentSocketPath });
  if (password) credentials.push({ kind: "password", password });
  return credentials;
}

async function ownCredentials(config: SshConfig, operator: Operator): Promise<Credential[]> {
  const agent: Credential[] = operator.agentSocketPath === undefined ? [] : [{ kind: "agent", socketPath: operator.agentSocketPath }];
  const files: Credential[] = [];
  for (const path of config.identityFiles) {
    const text = await readIfThere(path);
    if (text !== "") files.push({ kind: "key", text, passphrase: undefined, from: path, required: false });
  }
  return config.identitiesOnly ? [...files, ...agent] : [...agent, ...files];
}

async function trustFor(settings: ConnectionSettings, { host, port }: Pick<Target, "host" | "port">, operator: Operator): Promise<Trust> {
  if (settings.hostKey)
    return { source: "connection.hostKey", accepted: [parseHostKey(settings.hostKey, "connection.hostKey")], revoked: [] };
  const trust: Trust = { source: operator.knownHostsPaths.join(", "), accepted: [], revoked: [] };
  for (const path of operator.knownHostsPaths) {
    const { accepted, revoked } = knownHostKeys(await readIfThere(path), host, port);
    trust.accepted.push(...accepted);
    trust.revoked.push(...revoked);
  }
  return trust;
}

async function readIfThere(path: string): Promise<string> {
  try {
    return await readFile(path, "utf8");
  } catch {
    // what cannot be read adds no key and no trust
    return "";
  }
}
