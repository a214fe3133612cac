import type { Duplex } from "node:stream";
import { CloudletError } from "../core/errors.ts";
import { paths } from "../agent/protocol.ts";
import { asRoot, deadlineOf, execute, lastLines, quote, type Access } from "./exec.ts";
import { notStarted, type Link } from "./link.ts";
import { TunnelStream } from "./stream.ts";
import type { RemoteHost } from "./types.ts";
import { upload } from "./upload.ts";

/** A connection in use. `release` lets it be closed when nobody else uses it. */
export interface Lease extends Access {
  /** Whether this use keeps the process alive; it does at first. */
  hold(on: boolean): void;
  release(): void;
}

/** Where commissioning puts the agent. */
export const agentProgram = `${paths.root}/agent.js`;

/** A host whose every operation takes a live connection from the pool, so it outlives a lost one. */
export function createRemoteHost(first: Pick<Link, "label" | "fingerprint">, lease: (signal?: AbortSignal) => Promise<Lease>): RemoteHost {
  const { label } = first;
  const during = <T>(signal: AbortSignal | undefined, work: (access: Access) => Promise<T>): Promise<T> =>
    onceMore(async () => {
      const held = await lease(signal);
      return work(held).finally(() => held.release());
    });
  const exec: RemoteHost["exec"] = (command, options = {}) => during(options.signal, (access) => execute(access, command, options));
  return {
    label,
    hostKeyFingerprint: first.fingerprint,
    exec,
    async run(command, options) {
      const { stdout, stderr, exitCode } = await exec(command, options);
      if (exitCode !== 0)
        throw new CloudletError("FAILED", `a command on ${label} ended with exit code ${String(exitCode)}${lastLines(stderr || stdout)}`);
      return stdout;
    },
    upload: (source, target, options = {}) => during(options.signal, (access) => upload(access, { source, target }, options)),
    openSocket: (path, signal) =>
      onceMore(() =>
        stream(lease, { what: `the socket ${path} on ${label}`, signal }, (access, until) =>
          access.sudo ? bridge(access, path, until) : access.link.unixSocket(path, until),
        ),
      ),
    openTcp: (host, port, signal) =>
      onceMore(() =>
        stream(lease, { what: `${host}:${String(port)} as seen from ${label}`, signal }, ({ link }, until) => link.tcp(host, port, until)),
      ),
    async listenTcp(accept) {
      const held = await lease();
      try {
        const listening = await held.link.listen(accept);
        return { port: listening.port, close: () => listening.close().finally(() => held.release()) };
      } catch (error) {
        held.release();
        throw error;
      }
    },
  };
}

/** A connection may turn out to be lost only when it is used; what has not reached the node is tried again on a new one. */
async function onceMore<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof CloudletError) || error.cause !== notStarted) throw error;
    return work();
  }
}

type Open = (access: Access, signal: AbortSignal) => Promise<Duplex>;

const openMillis = 15_000;

/** Opens a stream that holds its connection until it is closed. */
async function stream(
  lease: (signal?: AbortSignal) => Promise<Lease>,
  { what, signal }: { what: string; signal: AbortSignal | undefined },
  open: Open,
): Promise<Duplex> {
  const held = await lease(signal);
  const deadline = deadlineOf(openMillis, signal);
  try {
    const opened = await open(held, deadline.signal);
    opened.once("close", () => held.release());
    opened.on("ref", () => held.hold(true)).on("unref", () => held.hold(false));
    return opened;
  } catch (cause) {
    held.release();
    if (signal?.aborted) throw new CloudletError("ABORTED", `connecting to ${what} was cancelled`);
    if (deadline.signal.aborted) throw new CloudletError("TIMEOUT", `${what} did not answer within ${String(openMillis / 1000)} s`);
    if (cause instanceof CloudletError) throw cause;
    throw new CloudletError("UNREACHABLE", `nothing answers at ${what}`, {
      fix: "check that the service behind it runs on the node, and that sshd allows forwarding",
      cause,
    });
  } finally {
    deadline.clear();
  }
}

/** sshd opens sockets with the login user's rights: who is not root goes through the agent's program, under sudo. */
async function bridge({ link }: Access, path: string, signal: AbortSignal): Promise<Duplex> {
  const script = `node=$(command -v node || command -v nodejs)
if [ -z "$node" ] || ! [ -f ${agentProgram} ]; then echo 'the cloudlet agent is not installed' >&2; exit 69; fi
exec "$node" ${agentProgram} bridge ${quote(path)}`;
  const { channel, exitCode, closed } = await link.command(asRoot({ sudo: true }, script), signal);
  let errors = "";
  channel.stderr.on("data", (chunk: Buffer) => (errors = (errors + chunk.toString()).slice(-4000)));
  const failure = (): Error | undefined => {
    if (exitCode() === 0) return undefined;
    if (exitCode() === undefined && !link.alive) return link.lostError();
    return new CloudletError("UNREACHABLE", `nothing answers at the socket ${path} on ${link.label}${lastLines(errors)}`, {
      fix: "check that the node is commissioned (`pulumi up` of its Node) and that the service behind the socket runs",
    });
  };
  return new TunnelStream(channel, { failure, closed });
}
