import { createHash, X509Certificate } from "node:crypto";
import { Readable } from "node:stream";
import { TLSSocket } from "node:tls";
import { buildConnector, Pool } from "undici";
import { CloudletError, codeOf } from "../core/errors.ts";
import type { RemoteHost, Rest, RestRequest, RestResponse } from "./types.ts";

const defaultTimeoutMillis = 30_000;

/** HTTP to a unix socket on a node. Concurrent requests use streams of their own, so an event stream blocks nothing. */
export function restOverSsh(host: RemoteHost, socketPath: string, label: string): Rest {
  const connect: buildConnector.connector = (_options, done) => {
    host.openSocket(socketPath).then(
      // undici asks for a socket, and uses of it what a tunnel has
      (stream) => done(null, stream as TLSSocket),
      (error: unknown) => done(error instanceof Error ? error : new Error(String(error)), null),
    );
  };
  return restOver(new Pool("http://node", { connect, bodyTimeout: 0, headersTimeout: 0, keepAliveMaxTimeout: 4_000 }), label);
}

export interface HttpsOptions {
  /** `https://host:port`, or `host:port`. */
  address: string;
  clientCertificate: string;
  clientKey: string;
  /** PEM, or the SHA-256 fingerprint in hex. */
  serverCertificate: string;
  label: string;
}

/** HTTPS with a client certificate to a server whose certificate is known; names, dates and issuers do not matter then. */
export function restOverHttps({ address, clientCertificate, clientKey, serverCertificate, label }: HttpsOptions): Rest {
  const pinned = certificateFingerprint(serverCertificate, label);
  const tls = buildConnector({ cert: clientCertificate, key: clientKey, rejectUnauthorized: false, maxCachedSessions: 0, timeout: 15_000 });
  const connect: buildConnector.connector = (options, done) => {
    tls(options, (error, socket) => {
      if (error !== null) return done(error, null);
      const seen = socket instanceof TLSSocket ? socket.getPeerX509Certificate() : undefined;
      const presented = seen === undefined ? "none" : hexOf(seen.fingerprint256);
      if (presented === pinned) return done(null, socket);
      socket.destroy();
      done(certificateError(label, { presented, pinned }), null);
    });
  };
  return restOver(new Pool(originOf(address), { connect, bodyTimeout: 0, headersTimeout: 0 }), label);
}

function certificateError(label: string, { presented, pinned }: { presented: string; pinned: string }): CloudletError {
  return new CloudletError(
    "HOST_KEY",
    `the server certificate of ${label} has changed: it presents SHA-256 ${presented}, the pinned one is ${pinned}; somebody may be in between`,
    {
      fix: "compare the fingerprint on the server itself; if it is right, set serverCertificate to it",
    },
  );
}

function restOver(pool: Pool, label: string): Rest {
  return {
    label,
    request: (request) => send(pool, label, request),
    close: () => pool.destroy(),
  };
}

async function send(pool: Pool, label: string, request: RestRequest): Promise<RestResponse> {
  const millis = request.timeoutMillis ?? defaultTimeoutMillis;
  const silence = silenceTimer(millis);
  const signal = request.signal === undefined ? silence.signal : AbortSignal.any([request.signal, silence.signal]);
  const what = `${request.method} ${request.path.replace(/\?.*$/, "")} to ${label}`;
  const translate = (error: unknown): CloudletError => {
    if (request.signal?.aborted) return new CloudletError("ABORTED", `${what} was cancelled`);
    if (silence.signal.aborted) return new CloudletError("TIMEOUT", `${what} had no answer within ${String(millis)} ms`);
    if (error instanceof CloudletError) return error;
    if (error instanceof Error && codeOf(error) !== "BUG" && codeOf(error) !== "ABORTED")
      return new CloudletError(codeOf(error), error.message, { cause: error });
    return new CloudletError("UNREACHABLE", `${what} failed: ${error instanceof Error ? error.message : String(error)}`, { cause: error });
  };
  try {
    if (request.signal?.aborted) throw request.signal.reason;
    const body = encode(request.body, silence.touch);
    const headers = { ...(body.type && { "content-type": body.type }), ...request.headers };
    const answer = await pool.request({ method: request.method, path: request.path, headers, body: body.data, signal });
    silence.touch();
    // a body that nobody reads must not end the process when it breaks
    answer.body.on("error", () => undefined);
    const watchedBody = Readable.from(watched(answer.body, { silence, translate }), { objectMode: false });
    // one that is given up before it was begun would hold its connection until the silence has lasted too long
    watchedBody.once("close", () => answer.body.destroy());
    return { status: answer.statusCode, headers: flat(answer.headers), body: watchedBody };
  } catch (error) {
    silence.stop();
    throw translate(error);
  }
}

interface Silence {
  signal: AbortSignal;
  /** Something moved. */
  touch(): void;
  stop(): void;
}

function silenceTimer(millis: number): Silence {
  const controller = new AbortController();
  // the connection in use keeps the process alive, not this timer: an answer may be left unread
  const start = (): NodeJS.Timeout => setTimeout(() => controller.abort(), millis).unref();
  let timer = start();
  const stop = (): void => clearTimeout(timer);
  const touch = (): void => {
    stop();
    timer = start();
  };
  return { signal: controller.signal, touch, stop };
}

interface Watch {
  silence: Silence;
  translate(error: unknown): CloudletError;
}

async function* watched(body: Readable, { silence, translate }: Watch): AsyncGenerator<Buffer> {
  try {
    silence.touch();
    for await (const chunk of body) {
      // the reader may take its time
      silence.stop();
      yield chunk as Buffer;
      silence.touch();
    }
  } catch (error) {
    throw translate(error);
  } finally {
    silence.stop();
  }
}

function encode(body: RestRequest["body"], touch: () => void): { data: Readable | Buffer | string | null; type?: string } {
  if (body === undefined) return { data: null };
  if (body instanceof Readable) return { data: Readable.from(moving(body, touch), { objectMode: false }) };
  if (Buffer.isBuffer(body)) return { data: body };
  return { data: JSON.stringify(body), type: "application/json" };
}

/** A long body counts as alive as long as it is taken. */
async function* moving(source: Readable, touch: () => void): AsyncGenerator<Buffer> {
  for await (const chunk of source) {
    touch();
    yield chunk as Buffer;
  }
}

function flat(headers: Record<string, string | string[] | undefined>): Record<string, string> {
  return Object.fromEntries(
    Object.entries(headers).map(([name, value]) => [name, Array.isArray(value) ? value.join(", ") : (value ?? "")]),
  );
}

function originOf(address: string): string {
  return new URL(address.includes("://") ? address : `https://${address}`).origin;
}

function certificateFingerprint(text: string, label: string): string {
  const hex = hexOf(text.replace(/^sha-?256[:=\s]/i, ""));
  if (/^[0-9a-f]{64}$/.test(hex)) return hex;
  try {
    return createHash("sha256").update(new X509Certificate(text).raw).digest("hex");
  } catch (cause) {
    throw new CloudletError("INVALID", `serverCertificate of ${label} is neither a PEM certificate nor a SHA-256 fingerprint`, {
      fix: "give the PEM text, or 64 hex digits",
      cause,
    });
  }
}

function hexOf(fingerprint: string): string {
  return fingerprint.trim().replaceAll(":", "").toLowerCase();
}
