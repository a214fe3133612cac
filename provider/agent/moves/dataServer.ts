import { createHash, X509Certificate } from "node:crypto";
import { mkdir, readFile, rename, rm } from "node:fs/promises";
import type { IncomingMessage, ServerResponse } from "node:http";
import { createServer, type Server } from "node:https";
import { join } from "node:path";
import type { Duplex, Readable } from "node:stream";
import type { z } from "zod";
import { CloudletError, codeOf } from "../../core/errors.ts";
import { sendFile } from "../blobResponse.ts";
import { isDiskFull } from "../durable.ts";
import { run } from "../process.ts";
import { digestSchema } from "../protocol.ts";
import { rangesProtocol, serveRanges } from "../ranges.ts";
import type { Recipe } from "./recipe.ts";
import {
  activateSchema,
  completeSchema,
  recipesSchema,
  roomSchema,
  sealRequestSchema,
  type Arrival,
  type Completion,
  liveSchema,
  type LiveStart,
  type Activated,
  type Activation,
  type Taken,
} from "./wire.ts";

/** What the data port asks of the agent; `authorize` says whether this token was handed out for this cloudlet. */
export interface Receiver {
  authorize(id: string, token: string): Promise<boolean>;
  arrival(id: string): Promise<Arrival>;
  supply(id: string, digest: string, body: Readable): Promise<void>;
  prepareLayer(id: string): Promise<void>;
  requireRoom(id: string, bytes: number): Promise<void>;
  begin(id: string, mode: "cold" | "state", parts: Recipe[]): Promise<string[]>;
  receive(id: string, body: Readable): Promise<void>;
  seal(id: string, seal: string): Promise<void>;
  /** Whether the epoch had to be given up instead. */
  activate(id: string, activation: Activation): Promise<Activated>;
  /** Returns what is here of it from before, as base64 in the driver's own words. */
  beginLive(id: string, start: LiveStart): Promise<{ has: string }>;
  takeRound(id: string, round: number, body: Readable): Promise<Taken>;
  endLive(id: string): Promise<void>;
  complete(id: string, completion: Completion): Promise<void>;
}

/** Where the data port finds what this node offers to others; rejects where the token is not for that blob. */
export interface Supplier {
  offered(token: string, digest: string): Promise<string>;
}

const statusOf: Record<string, number> = { UNAUTHORIZED: 401, NOT_FOUND: 404 };
const recipesLimit = 64 * 1024 * 1024;
/** A sender that falls silent in the middle of a body is gone. */
const silenceMillis = 60_000;

/** The port on which other agents deliver and fetch; open only while a move is expected or something is offered. */
export class DataServer {
  readonly #root: string;
  readonly #port: number;
  readonly #receiver: Receiver;
  readonly #supplier: Supplier;
  #server: Server | undefined;
  /** Connections that have left HTTP, of which the server knows no more. */
  readonly #ranges = new Set<Duplex>();
  #opening: Promise<string> = Promise.resolve("");

  constructor(root: string, port: number, parts: { receiver: Receiver; supplier: Supplier }) {
    this.#root = root;
    this.#port = port;
    this.#receiver = parts.receiver;
    this.#supplier = parts.supplier;
  }

  /** Opens the port where it is closed, and returns the digest of its certificate. */
  open(): Promise<string> {
    this.#opening = this.#opening.catch(() => "").then(() => this.#open());
    return this.#opening;
  }

  get isOpen(): boolean {
    return this.#server !== undefined;
  }

  close(): void {
    this.#server?.close();
    this.#server?.closeIdleConnections();
    for (const socket of this.#ranges) socket.destroy();
    this.#server = undefined;
  }

  async #open(): Promise<string> {
    const { key, cert } = await identity(join(this.#root, "agent"));
    const port = this.#port;
    if (this.#server === undefined) {
      const server = createServer({ key, cert, requestTimeout: 0 }, (incoming, outgoing) => void this.#answer(incoming, outgoing));
      server.on("upgrade", (incoming, socket, head) => void this.#upgrade(incoming, { socket, head }));
      await new Promise<void>((resolve, reject) => {
        server.once("error", (error) => {
          reject(
            new CloudletError("BUSY", `cannot listen on port ${port} for the move: ${error.message}`, {
              fix: `free TCP port ${port} on the node`,
            }),
          );
        });
        server.listen(port, resolve);
      });
      this.#server = server;
    }
    return createHash("sha256").update(new X509Certificate(cert).raw).digest("hex");
  }

  async #answer(incoming: IncomingMessage, outgoing: ServerResponse): Promise<void> {
    const url = new URL(incoming.url ?? "/", "https://node");
    const id = url.searchParams.get("id") ?? "";
    try {
      const token = tokenOf(incoming);
      const asked = blobOf(url);
      if (asked !== undefined && (incoming.method === "GET" || incoming.method === "HEAD"))
        return await sendFile(incoming, outgoing, await this.#supplier.offered(token, asked));
      if (!(await this.#receiver.authorize(id, token)))
        throw new CloudletError("UNAUTHORIZED", "this token is not for that cloudlet", { fix: "run `pulumi up` again for a new one" });
      const result = await this.#route(`${incoming.method} ${url.pathname}`, id, incoming);
      outgoing.writeHead(200, { "content-type": "application/json" }).end(JSON.stringify(result ?? {}));
    } catch (error) {
      incoming.resume();
      const detail = detailOf(error);
      // what was announced must not seem to be complete
      if (outgoing.headersSent) return void outgoing.destroy();
      outgoing.writeHead(statusOf[detail.code] ?? 409, { "content-type": "application/json" });
      outgoing.end(JSON.stringify({ error: detail }));
    }
  }

  /** To ranges of what is offered; nothing else is spoken here. */
  async #upgrade(incoming: IncomingMessage, { socket, head }: { socket: Duplex; head: Buffer }): Promise<void> {
    socket.on("error", () => undefined);
    // whoever wants nothing for so long is gone
    incoming.socket.setTimeout(silenceMillis, () => socket.destroy());
    this.#ranges.add(socket);
    try {
      const digest = blobOf(new URL(incoming.url ?? "/", "https://node"));
      if (digest === undefined || incoming.headers.upgrade !== rangesProtocol)
        throw new CloudletError("NOT_FOUND", `no such protocol: ${incoming.headers.upgrade ?? "none"}`);
      await serveRanges(socket, head, await this.#supplier.offered(tokenOf(incoming), digest));
    } catch (error) {
      // what cannot be read any more ends like a broken link: the status is only seen before the first byte
      socket.end(`HTTP/1.1 ${statusOf[codeOf(error)] ?? 409} Refused\r\nconnection: close\r\ncontent-length: 0\r\n\r\n`);
    } finally {
      this.#ranges.delete(socket);
    }
  }

  async #route(route: string, id: string, incoming: IncomingMessage): Promise<unknown> {
    if (route.startsWith("PUT /v1/blobs/")) {
      const digest = digestSchema.parse(route.slice("PUT /v1/blobs/".length));
      return whileHeard(incoming, () => this.#receiver.supply(id, digest, incoming));
    }
    const round = /^PUT \/v1\/rounds\/(\d{1,6})$/.exec(route)?.[1];
    if (round !== undefined) return whileHeard(incoming, () => this.#receiver.takeRound(id, Number(round), incoming));
    switch (route) {
      case "POST /v1/live":
        return this.#receiver.beginLive(id, await bodyOf(incoming, liveSchema));
      case "DELETE /v1/live":
        return this.#receiver.endLive(id);
      case "GET /v1/arrival":
        return this.#receiver.arrival(id);
      case "POST /v1/layer":
        return this.#receiver.prepareLayer(id);
      case "POST /v1/room":
        return this.#receiver.requireRoom(id, (await bodyOf(incoming, roomSchema)).bytes);
      case "PUT /v1/recipes": {
        const { mode, parts } = await bodyOf(incoming, recipesSchema);
        return { missing: await this.#receiver.begin(id, mode, parts) };
      }
      case "PUT /v1/pieces":
        return whileHeard(incoming, () => this.#receiver.receive(id, incoming));
      case "POST /v1/seal":
        return this.#receiver.seal(id, (await bodyOf(incoming, sealRequestSchema)).seal);
      case "POST /v1/activate":
        return this.#receiver.activate(id, await bodyOf(incoming, activateSchema));
      case "POST /v1/complete":
        return this.#receiver.complete(id, await bodyOf(incoming, completeSchema));
      default:
        throw new CloudletError("NOT_FOUND", `no such request: ${route}`);
    }
  }
}

function tokenOf({ headers }: IncomingMessage): string {
  return /^Bearer (.+)$/.exec(headers.authorization ?? "")?.[1] ?? "";
}

function blobOf({ pathname }: URL): string | undefined {
  return /^\/v1\/blobs\/([0-9a-f]{64})$/.exec(pathname)?.[1];
}

/** Without this a link that was cut in the middle of a body would hold its receiver for good. */
async function whileHeard<T>(incoming: IncomingMessage, receive: () => Promise<T>): Promise<T> {
  const lost = (): void => void incoming.destroy(new CloudletError("UNREACHABLE", "the sender fell silent"));
  incoming.socket.setTimeout(silenceMillis, lost);
  try {
    return await receive();
  } finally {
    incoming.socket.setTimeout(0).removeListener("timeout", lost);
  }
}

function detailOf(error: unknown): { code: string; message: string; fix: string } {
  const message = error instanceof Error ? error.message : String(error);
  if (isDiskFull(error)) return { code: "REFUSED", message: `its disk is full: ${message}`, fix: "free disk space on the node" };
  return { code: codeOf(error), message, fix: error instanceof CloudletError ? error.fix : "" };
}

async function bodyOf<T>(incoming: IncomingMessage, schema: z.ZodType<T>): Promise<T> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of incoming) {
    bytes += chunk.length;
    if (bytes > recipesLimit) throw new CloudletError("REFUSED", `the request is larger than ${recipesLimit} bytes`);
    chunks.push(Buffer.from(chunk));
  }
  const parsed = schema.safeParse(JSON.parse(Buffer.concat(chunks).toString() || "{}"));
  if (!parsed.success)
    throw new CloudletError("INVALID", `the other agent sent something unexpected: ${parsed.error.issues[0]?.message}`, {
      fix: "bring both nodes to the same version with `pulumi up`",
    });
  return parsed.data;
}

/** The agent's own certificate, made once; peers pin it, so its name and dates mean nothing. */
async function identity(directory: string): Promise<{ key: Buffer; cert: Buffer }> {
  const [keyPath, certPath] = [join(directory, "tls.key"), join(directory, "tls.crt")];
  const both = () => Promise.all([readFile(keyPath), readFile(certPath)]);
  const there = await both().catch(() => undefined);
  if (there) return { key: there[0], cert: there[1] };
  await mkdir(directory, { recursive: true });
  const temporary = (path: string): string => `${path}.new`;
  await run(
    [
      "openssl",
      "req",
      "-x509",
      "-newkey",
      "ec",
      "-pkeyopt",
      "ec_paramgen_curve:prime256v1",
      "-nodes",
      "-days",
      "36500",
      "-subj",
      "/CN=cloudlet-agent",
      "-keyout",
      temporary(keyPath),
      "-out",
      temporary(certPath),
    ],
    { timeoutMillis: 30_000 },
  );
  await rename(temporary(keyPath), keyPath);
  await rename(temporary(certPath), certPath);
  const [key, cert] = await both();
  await rm(temporary(keyPath), { force: true });
  return { key, cert };
}
