import { findBundle } from "./agent/agentService.ts";
import { connectAgent } from "./agent/connect.ts";
import type { AgentClient } from "./agent/clientTypes.ts";
import { createCommission } from "./agent/install.ts";
import { paths } from "./agent/protocol.ts";
import type { Context } from "./core/context.ts";
import { Declarations } from "./core/declarations.ts";
import { CloudletError } from "./core/errors.ts";
import { createLocal, digests } from "./local/files.ts";
import { readSettings, type Settings } from "./settings.ts";
import { Gate } from "./transport/gate.ts";
import { currentOperator } from "./transport/operator.ts";
import { createHostPool } from "./transport/pool.ts";
import type * as Rests from "./transport/rest.ts";
import type { ConnectionSettings, RemoteHost, Rest } from "./transport/types.ts";

/** What all operations of one run of the engine share. */
export const run = { declarations: new Declarations(), digests };

/** Where LXD listens: Debian's package, and the snap. */
const lxdSockets = ["/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"];

const rests = new Map<string, Rest>();

export interface Runtime {
  /** The real world for one operation; `report` says where status lines and warnings go, and `cancel` may end it early. */
  openContext(report: Pick<Context, "status" | "warn">, cancel?: AbortSignal): Context;
  /** Does the work when its turn has come. */
  inTurn<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T>;
}

/** The real world, as the settings have it. */
export function createRuntime(settings: Settings): Runtime {
  const pool = createHostPool({ operator: () => currentOperator(settings.knownHostsFile) });
  const files = createLocal(settings.storePath);
  const gate = new Gate(settings.concurrency ?? Infinity);
  return {
    openContext(report, cancel) {
      // such a signal's timer does not keep the process alive
      const deadline = AbortSignal.timeout(settings.operationTimeout * 1000);
      const signal = cancel === undefined ? deadline : AbortSignal.any([deadline, cancel]);
      const host = (connection: ConnectionSettings): Promise<RemoteHost> => pool.host(withDefaults(connection, settings), signal);
      return {
        signal,
        ...report,
        local: files,
        host,
        agent: async (connection) => openAgent(await host(connection), { signal, ...report }),
        lxd: async (connection, remote) => openLxd(connection, remote, host),
        // the bundle is looked for when it is needed: a preview needs none
        commission: {
          apply: (...args) => createCommission({ bundle: bundle() }).apply(...args),
          observe: (...args) => createCommission({ bundle: bundle() }).observe(...args),
          remove: (...args) => createCommission({ bundle: bundle() }).remove(...args),
        },
      };
    },
    async inTurn(signal, work) {
      await gate.enter(signal);
      return work().finally(() => gate.leave());
    },
  };
}

let unconfigured: Runtime | undefined;

/** Where there is no provider configuration: as the environment has it. */
export function openContext(report: Pick<Context, "status" | "warn">, cancel?: AbortSignal): Context {
  unconfigured ??= createRuntime(readSettings({}));
  return unconfigured.openContext(report, cancel);
}

/** A connection that brings a credential is not mixed with another's. */
function withDefaults(connection: ConnectionSettings, { connection: defaults = {} }: Settings): ConnectionSettings {
  const { password, privateKey, privateKeyPassword, agentSocketPath, ...rest } = defaults;
  const credentials = { password, privateKey, privateKeyPassword, agentSocketPath };
  const own = Object.keys(credentials).some((name) => name in connection);
  return { ...rest, ...(!own && credentials), ...connection };
}

function bundle(): string {
  return findBundle(import.meta.dirname);
}

async function openAgent(host: RemoteHost, watch: Pick<Context, "signal" | "status">): Promise<AgentClient> {
  const { restOverSsh } = await http();
  const rest = shared(`agent ${host.label} ${host.hostKeyFingerprint}`, () => restOverSsh(host, paths.socket, `agent on ${host.label}`));
  return connectAgent(host, rest, { ...watch, bundle: bundle() });
}

async function openLxd(
  connection: ConnectionSettings,
  remote: Parameters<Context["lxd"]>[1],
  open: (connection: ConnectionSettings) => Promise<RemoteHost>,
): Promise<Rest> {
  const { restOverHttps, restOverSsh } = await http();
  if (remote) return shared(`lxd ${JSON.stringify(remote)}`, () => restOverHttps({ ...remote, label: `LXD at ${remote.address}` }));
  const host = await open(connection);
  const found = (await host.run(`for socket in ${lxdSockets.join(" ")}; do [ -S "$socket" ] && echo "$socket"; done; true`))
    .trim()
    .split("\n")[0];
  if (!found)
    throw new CloudletError("NOT_FOUND", `${host.label} has no LXD listening`, {
      fix: "start LXD there, or let the Hypervisor install it",
    });
  return shared(`lxd ${host.label} ${found}`, () => restOverSsh(host, found, `LXD on ${host.label}`));
}

/** Loaded when a node is first reached. */
function http(): Promise<typeof Rests> {
  return import("./transport/rest.ts");
}

function shared(key: string, make: () => Rest): Rest {
  const rest = rests.get(key) ?? make();
  rests.set(key, rest);
  return rest;
}
