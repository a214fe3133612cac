import { existsSync } from "node:fs";
import { request as httpRequest, type ClientRequest, type IncomingMessage, type RequestOptions } from "node:http";
import { Readable } from "node:stream";
import { X509Certificate } from "node:crypto";
import { connect as connectTls } from "node:tls";
import { CloudletError } from "../../core/errors.ts";
import type { Rest, RestRequest, RestResponse } from "../../transport/types.ts";

const otherCertificate = "compare the fingerprint on the node, then set the server certificate";
const sockets = ["/var/lib/lxd/unix.socket", "/var/snap/lxd/common/lxd/unix.socket"];

/** Where LXD listens on this machine: Debian's package, or the snap. Without either, requests say UNREACHABLE. */
export function findLxdSocket(): string {
  return sockets.find((path) => existsSync(path)) ?? "/var/lib/lxd/unix.socket";
}

/** HTTP over a unix socket of this machine. */
export function restOverSocket(path: string, label: string): Rest {
  return createRest(label, (options) => httpRequest({ ...options, socketPath: path }));
}

export interface TlsSettings {
  /** `host:port` or an https URL. */
  address: string;
  /** PEM. */
  clientCertificate: string;
  clientKey: string;
  /** The one certificate that the server may show: PEM, or its SHA-256 fingerprint in hex. */
  serverCertificate: string;
}

/** HTTPS with a client certificate to a server whose certificate is pinned. */
export function restOverTls(settings: TlsSettings, label: string): Rest {
  const url = new URL(settings.address.includes("://") ? settings.address : `https://${settings.address}`);
  const pinned = pinOf(settings.serverCertificate, label);
  const { clientCertificate: cert, clientKey: key } = settings;
  const address = { host: url.hostname, port: url.port === "" ? 8443 : Number(url.port), cert, key };
  return createRest(label, (options) =>
    httpRequest({
      ...options,
      host: url.hostname,
      // only without an agent the connection is ours to make
      agent: undefined,
      createConnection(_options, done) {
        // the pin is the whole verification; nothing is sent before it has been compared
        const socket = connectTls({ ...address, rejectUnauthorized: false, timeout: dialMillis });
        const settle = once((error: Error | null) => done(error, socket));
        socket.once("timeout", () => socket.destroy(new Error(`no answer within ${String(dialMillis / 1000)} s`)));
        socket.once("error", settle);
        socket.once("secureConnect", () => {
          const shown = socket.getPeerX509Certificate()?.fingerprint256 ?? "none";
          if (plainHex(shown) !== pinned) return void socket.destroy(wrongCertificate(label, shown));
          socket.setTimeout(0);
          settle(null);
        });
        return undefined;
      },
    }),
  );
}

const dialMillis = 15_000;

/** SHA-256 of the certificate, from itself or as it is given. */
function pinOf(certificate: string, label: string): string {
  if (/^[0-9a-f]{64}$/.test(plainHex(certificate))) return plainHex(certificate);
  try {
    return plainHex(new X509Certificate(certificate).fingerprint256);
  } catch (cause) {
    throw new CloudletError("INVALID", `the server certificate given for ${label} is neither PEM nor a SHA-256 fingerprint in hex`, {
      fix: "give the content of LXD's server.crt",
      cause,
    });
  }
}

function plainHex(text: string): string {
  return text.trim().replaceAll(":", "").toLowerCase();
}

function wrongCertificate(label: string, shown: string): CloudletError {
  return new CloudletError("HOST_KEY", `${label} shows another certificate than the pinned one: ${shown}`, { fix: otherCertificate });
}

function once(call: (error: Error | null) => void): (error: Error | null) => void {
  let called = false;
  return (error) => {
    if (!called) call(error);
    called = true;
  };
}

function createRest(label: string, open: (options: RequestOptions) => ClientRequest): Rest {
  const live = new Set<ClientRequest>();
  return {
    label,
    async request(request) {
      if (request.signal?.aborted === true) throw new CloudletError("ABORTED", `request to ${label} was cancelled`);
      const sent = open({ method: request.method, path: request.path, headers: headersOf(request), agent: false });
      live.add(sent);
      sent.once("close", () => live.delete(sent));
      return exchange(label, sent, request);
    },
    close() {
      for (const sent of live) sent.destroy();
      return Promise.resolve();
    },
  };
}

function headersOf(request: RestRequest): Record<string, string> {
  const { body } = request;
  if (body === undefined || body instanceof Readable) return { ...request.headers };
  if (Buffer.isBuffer(body)) return { "content-length": String(body.length), ...request.headers };
  return { "content-type": "application/json", "content-length": String(Buffer.byteLength(JSON.stringify(body))), ...request.headers };
}

function exchange(label: string, sent: ClientRequest, request: RestRequest): Promise<RestResponse> {
  const deadline = request.timeoutMillis ?? 30_000;
  const abort = () => sent.destroy(new CloudletError("ABORTED", `request to ${label} was cancelled`));
  request.signal?.addEventListener("abort", abort, { once: true });
  // the clock starts again with each chunk in either direction: a long upload is not a silent server
  const timer = setTimeout(
    () => sent.destroy(new CloudletError("TIMEOUT", `${label} did not answer within ${String(deadline)} ms`)),
    deadline,
  );
  const done = () => {
    clearTimeout(timer);
    request.signal?.removeEventListener("abort", abort);
  };
  return new Promise((resolve, reject) => {
    sent.once("close", done);
    sent.on("error", (cause) => {
      done();
      reject(translate(label, cause));
    });
    sent.once("response", (response: IncomingMessage) => {
      timer.refresh();
      resolve({ status: response.statusCode ?? 0, headers: flatten(response), body: Readable.from(chunks(label, response, timer)) });
    });
    feed(sent, request.body, timer);
  });
}

async function* chunks(label: string, response: IncomingMessage, timer: NodeJS.Timeout): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of response) {
      timer.refresh();
      if (Buffer.isBuffer(chunk)) yield chunk;
    }
  } catch (cause) {
    throw translate(label, cause);
  } finally {
    clearTimeout(timer);
    response.destroy();
  }
}

function feed(sent: ClientRequest, body: RestRequest["body"], timer: NodeJS.Timeout): void {
  if (body === undefined) sent.end();
  else if (Buffer.isBuffer(body)) sent.end(body);
  else if (body instanceof Readable) {
    body.on("data", () => timer.refresh());
    body.once("error", (cause) => sent.destroy(cause));
    body.pipe(sent);
  } else sent.end(JSON.stringify(body));
}

function flatten(response: IncomingMessage): Record<string, string> {
  const headers: Record<string, string> = {};
  for (const [name, value] of Object.entries(response.headers)) headers[name] = Array.isArray(value) ? value.join(", ") : (value ?? "");
  return headers;
}

function translate(label: string, cause: unknown): CloudletError {
  if (cause instanceof CloudletError) return cause;
  const text = cause instanceof Error ? cause.message : String(cause);
  return new CloudletError("UNREACHABLE", `${label} cannot be reached: ${text}`, { cause });
}
