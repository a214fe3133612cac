import { findBundle } from "./agent/agentService.ts";
import { connectAgent } from "./agent/connect.ts";
import type { AgentClient } from "./agent/clientTypes.ts";
import { createCommission } from "./agent/install.ts";
import { paths } from "./agent/protocol.ts";
import type { Context } from "./core/context.ts";
import { Declarations } from "./core/declarations.ts";
import { CloudletError } from "./core/errors.ts";
import { digests, local } from "./local/files.ts";
import { createHostPool } from "./transport/pool.ts";
import { restOverHttps, restOverSsh } from "./transport/rest.ts";
import type { ConnectionSettings, RemoteHost, Rest } from "./transport/types.ts";

/** What all operations of one run of the engine share. */
export const run = { declarations: new Declarations(), digests };

/** No operation lasts longer, so that nothing hangs for ever. */
const operationMillis = 60 * 60_000;

/** Where LXD listens: Debian's package, and the snap. */
const lxdSockets = ["/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"];

const pool = createHostPool();
const rests = new Map<string, Rest>();

/** The real world for one operation; `report` says where status lines and warnings go, and `cancel` may end it early. */
export function openContext(report: Pick<Context, "status" | "warn">, cancel?: AbortSignal): Context {
  // such a signal's timer does not keep the process alive
  const deadline = AbortSignal.timeout(operationMillis);
  const signal = cancel === undefined ? deadline : AbortSignal.any([deadline, cancel]);
  const host = (connection: ConnectionSettings): Promise<RemoteHost> => pool.host(connection, signal);
  return {
    signal,
    ...report,
    local,
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
}

function bundle(): string {
  return findBundle(import.meta.dirname);
}

async function openAgent(host: RemoteHost, watch: Pick<Context, "signal" | "status">): Promise<AgentClient> {
  const rest = shared(`agent ${host.label} ${host.hostKeyFingerprint}`, () => restOverSsh(host, paths.socket, `agent on ${host.label}`));
  return connectAgent(host, rest, { ...watch, bundle: bundle() });
}

async function openLxd(
  connection: ConnectionSettings,
  remote: Parameters<Context["lxd"]>[1],
  open: (connection: ConnectionSettings) => Promise<RemoteHost>,
): Promise<Rest> {
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

function shared(key: string, make: () => Rest): Rest {
  const rest = rests.get(key) ?? make();
  rests.set(key, rest);
  return rest;
}
