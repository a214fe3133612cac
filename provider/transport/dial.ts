import { connect, type Socket } from "node:net";
import type { Duplex } from "node:stream";
import { setTimeout as pause } from "node:timers/promises";
import { CloudletError, codeOf } from "../core/errors.ts";
import { algorithmOffers } from "./hostKey.ts";
import { Link, type Footing } from "./link.ts";
import { handshake } from "./ssh.ts";
import type { Target } from "./target.ts";

/** Connects, through the bastion where there is one. Tries again while the node is silent; refused keys and credentials are final. */
export async function dial(target: Target, signal: AbortSignal): Promise<Link> {
  const started = performance.now();
  for (let attempt = 1; ; attempt += 1) {
    try {
      return await attemptOffers(target, signal);
    } catch (error) {
      if (codeOf(error) !== "UNREACHABLE" || isFinal(error)) throw error;
      const delay = Math.min(250 * 2 ** (attempt - 1), 5000);
      const spent = performance.now() - started;
      if (attempt >= target.attempts || spent + delay >= target.budgetMillis) throw withAttempts(error, attempt);
      await pause(delay, undefined, { signal }).catch(() => {
        throw cancelled(target);
      });
    }
  }
}

/** Another key type gets a turn where the pinned fingerprint does not tell which one it belongs to. */
async function attemptOffers(target: Target, signal: AbortSignal): Promise<Link> {
  let first: unknown;
  for (const algorithms of algorithmOffers(target.trust)) {
    try {
      return await attemptOnce(target, algorithms, signal);
    } catch (error) {
      // a node without keys of this type says UNSUPPORTED
      if (codeOf(error) !== "HOST_KEY" && codeOf(error) !== "UNSUPPORTED") throw error;
      if (first === undefined || codeOf(first) === "UNSUPPORTED") first = error;
    }
  }
  throw first;
}

async function attemptOnce(target: Target, algorithms: string[], signal: AbortSignal): Promise<Link> {
  const { socket, footing } =
    target.via === undefined ? await openSocket(target, signal) : await throughBastion(target, target.via, signal);
  try {
    return new Link(target.label, await handshake(target, { socket, algorithms, signal }), footing);
  } catch (error) {
    footing.end();
    throw error;
  }
}

async function openSocket(target: Target, signal: AbortSignal): Promise<{ socket: Duplex; footing: Footing }> {
  if (signal.aborted) throw cancelled(target);
  const socket = connect({ host: target.host, port: target.port, noDelay: true, keepAlive: true, keepAliveInitialDelay: 15_000 });
  await connected(socket, target, signal);
  const hold = (on: boolean): void => void (on ? socket.ref() : socket.unref());
  return { socket, footing: { hold, heard: () => socket.bytesRead, end: () => void socket.destroySoon() } };
}

function connected(socket: Socket, target: Target, signal: AbortSignal): Promise<void> {
  return new Promise<void>((resolve, reject) => {
    const settle = (error?: CloudletError): void => {
      clearTimeout(timer);
      signal.removeEventListener("abort", onAbort);
      if (error === undefined) return resolve();
      socket.destroy();
      reject(error);
    };
    const onAbort = (): void => settle(cancelled(target));
    const timer = setTimeout(
      () => settle(new CloudletError("UNREACHABLE", `${target.label} did not answer within ${String(target.timeoutMillis / 1000)} s`)),
      target.timeoutMillis,
    );
    signal.addEventListener("abort", onAbort, { once: true });
    socket.once("connect", () => settle());
    socket.on("error", (cause: NodeJS.ErrnoException) =>
      settle(
        new CloudletError("UNREACHABLE", `${target.label} cannot be reached: ${reasons[cause.code ?? ""] ?? cause.message}`, { cause }),
      ),
    );
  });
}

const reasons: Record<string, string> = {
  ECONNREFUSED: "connection refused",
  EHOSTUNREACH: "no route to the host",
  ENETUNREACH: "no route to its network",
  ENOTFOUND: "its name cannot be resolved",
  ECONNRESET: "connection reset",
};

async function throughBastion(target: Target, bastion: Target, signal: AbortSignal): Promise<{ socket: Duplex; footing: Footing }> {
  const link = await dial(bastion, signal);
  const timeout = AbortSignal.timeout(target.timeoutMillis);
  try {
    const socket = await link.tcp(target.host, target.port, AbortSignal.any([signal, timeout]));
    return { socket, footing: { hold: (on) => link.hold(on), heard: () => socket.bytesRead, end: () => link.end() } };
  } catch (cause) {
    link.end();
    if (signal.aborted) throw cancelled(target);
    const why = timeout.aborted
      ? `it did not answer within ${String(target.timeoutMillis / 1000)} s`
      : cause instanceof Error
        ? cause.message
        : String(cause);
    throw new CloudletError("UNREACHABLE", `${target.label} cannot be reached through the bastion ${bastion.label}: ${why}`, { cause });
  }
}

function isFinal(error: unknown): boolean {
  const cause = error instanceof Error ? error.cause : undefined;
  return cause instanceof Error && "code" in cause && cause.code === "ENOTFOUND";
}

function withAttempts(error: unknown, attempts: number): unknown {
  if (attempts === 1 || !(error instanceof CloudletError)) return error;
  return new CloudletError(error.code, `${error.message} (${String(attempts)} attempts)`, { fix: error.fix, cause: error.cause });
}

function cancelled({ label }: Target): CloudletError {
  return new CloudletError("ABORTED", `connecting to ${label} was cancelled`);
}
