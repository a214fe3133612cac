import { Agent, request, type IncomingMessage } from "node:http";
import type { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import type { TLSSocket } from "node:tls";
import { z } from "zod";
import { CloudletError, codeOf, errorCodes, type ErrorCode } from "../../core/errors.ts";
import { dialPinned } from "../pinnedTls.ts";
import { jobErrorSchema } from "../jobProtocol.ts";
import { type MoveTarget } from "../protocol.ts";
import { takenSchema } from "./wire.ts";

const answerMillis = 10_000;
/** A body of which no byte gets away for this long has lost its link. */
const silenceMillis = 30_000;
const patientMillis = 15 * 60_000;
const lookMillis = 3_000;

interface Call {
  method: "GET" | "PUT" | "POST" | "DELETE";
  path: string;
  body?: unknown;
  timeoutMillis?: number;
  signal?: AbortSignal | undefined;
}

/** One source's connection to a target agent's data port: TLS with the pinned certificate, a one-time token on each request. */
export class MoveChannel {
  readonly #agent: Agent;
  readonly #target: MoveTarget;
  readonly #id: string;
  readonly #relayPort: number | undefined;
  bytesSent = 0;
  /** How long bodies have waited for the link, and not for whoever makes them. */
  linkMillis = 0;
  /** The target's own address at which it was reached last, where no relay lies between. */
  reachedAt: string | undefined;

  /** With a relay everything goes through that port of this very node. */
  constructor(target: MoveTarget, id: string, relayPort?: number) {
    this.#target = target;
    this.#id = id;
    this.#relayPort = relayPort;
    this.#agent = new Agent({ keepAlive: true, maxSockets: 2 });
    this.#agent.createConnection = (_options, callback) => {
      this.#dial().then(
        (socket) => callback?.(null, socket),
        (error: unknown) => callback?.(error instanceof Error ? error : new Error(String(error)), undefined as never),
      );
      return undefined;
    };
  }

  async json<T>(schema: z.ZodType<T>, call: Call): Promise<T> {
    const body = call.body === undefined ? undefined : Buffer.from(JSON.stringify(call.body));
    const response = await this.#send({ timeoutMillis: answerMillis, ...call }, async (outgoing) => {
      outgoing.end(body);
      this.bytesSent += body?.length ?? 0;
    });
    const text = await textOf(response);
    const status = response.statusCode ?? 0;
    if (status >= 400) throw remoteError(this.#target.node, status, text);
    return schema.parse(JSON.parse(text || "{}"));
  }

  /** What takes the target long is waited for, for as long as it answers otherwise: a link that is cut makes no sound. */
  async patiently<T>(schema: z.ZodType<T>, call: Omit<Call, "timeoutMillis">): Promise<T> {
    const ending = new AbortController();
    const cancel = (): void => ending.abort();
    call.signal?.addEventListener("abort", cancel);
    let lost: unknown;
    const timer = setInterval(() => {
      this.json(z.unknown(), { method: "GET", path: "/v1/arrival" }).catch((error: unknown) => {
        if (codeOf(error) !== "UNREACHABLE") return;
        lost = error;
        ending.abort();
      });
    }, lookMillis);
    try {
      return await this.json(schema, { ...call, timeoutMillis: patientMillis, signal: ending.signal });
    } catch (error) {
      throw lost ?? error;
    } finally {
      clearInterval(timer);
      call.signal?.removeEventListener("abort", cancel);
    }
  }

  /** Streams a body, counting what is really sent. The answer may say how long the target was busy after all had come. */
  async stream(path: string, body: Readable, call: Pick<Call, "signal" | "timeoutMillis"> = {}): Promise<void> {
    let written = performance.now();
    const response = await this.#send({ method: "PUT", path, ...call }, async (outgoing) => {
      const counter = this;
      await pipeline(
        body,
        async function* (chunks: AsyncIterable<Buffer>) {
          for await (const chunk of chunks) {
            counter.bytesSent += chunk.length;
            const waiting = performance.now();
            yield chunk;
            counter.linkMillis += performance.now() - waiting;
          }
        },
        outgoing,
      );
      written = performance.now();
    });
    const text = await textOf(response);
    if ((response.statusCode ?? 0) >= 400) throw remoteError(this.#target.node, response.statusCode ?? 0, text);
    const { busyMillis } = takenSchema.parse(JSON.parse(text || "{}"));
    // what the kernel had taken was not on the other side yet
    this.linkMillis += Math.max(0, performance.now() - written - busyMillis);
  }

  close(): void {
    this.#agent.destroy();
  }

  async #send(
    call: { method: string; path: string; timeoutMillis?: number; signal?: AbortSignal | undefined },
    write: (outgoing: ReturnType<typeof request>) => Promise<void>,
  ): Promise<IncomingMessage> {
    const outgoing = request({
      agent: this.#agent,
      method: call.method,
      path: `${call.path}?id=${encodeURIComponent(this.#id)}`,
      headers: { authorization: `Bearer ${this.#target.token}`, "content-type": "application/octet-stream" },
      timeout: call.timeoutMillis ?? silenceMillis,
      ...(call.signal && { signal: call.signal }),
    });
    outgoing.on("timeout", () => outgoing.destroy(this.#lost("did not answer in time")));
    const answered = new Promise<IncomingMessage>((resolve, reject) => {
      outgoing.on("response", resolve);
      outgoing.on("error", (error) =>
        reject(
          error instanceof CloudletError
            ? error
            : call.signal?.aborted
              ? new CloudletError("ABORTED", "the move was cancelled")
              : this.#lost(error.message),
        ),
      );
    });
    // a refusal may arrive while the body is still being written: then the answer matters, not the broken pipe
    await Promise.race([answered, write(outgoing)]).catch(() => {});
    return answered;
  }

  #lost(reason: string): CloudletError {
    return new CloudletError("UNREACHABLE", `the connection to the agent of ${this.#target.node} was lost: ${reason}`);
  }

  async #dial(): Promise<TLSSocket> {
    const reasons: string[] = [];
    const relayed = this.#relayPort !== undefined;
    for (const host of relayed ? ["127.0.0.1"] : this.#target.addresses) {
      try {
        const socket = await dialPinned(this.#target, host, this.#relayPort ?? this.#target.port);
        if (!relayed) this.reachedAt = socket.remoteAddress;
        return socket;
      } catch (error) {
        if (error instanceof CloudletError && error.code === "HOST_KEY") throw error;
        reasons.push(`${host}: ${error instanceof Error ? error.message : String(error)}`);
      }
    }
    throw new CloudletError(
      "UNREACHABLE",
      `no address of ${this.#target.node} answers on port ${this.#target.port} (${reasons.join("; ")})`,
    );
  }
}

async function textOf(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  try {
    for await (const chunk of response) chunks.push(Buffer.from(chunk));
  } catch (error) {
    throw new CloudletError("UNREACHABLE", "the other agent's answer was cut off", { cause: error });
  }
  return Buffer.concat(chunks).toString();
}

const errorBody = z.object({ error: jobErrorSchema });

function remoteError(node: string, status: number, text: string): CloudletError {
  const parsed = errorBody.safeParse(safeJson(text));
  if (!parsed.success) return new CloudletError("FAILED", `the agent of ${node} answered ${status}: ${text.slice(0, 200)}`);
  const { code, message, fix } = parsed.data.error;
  return new CloudletError(code in errorCodes ? (code as ErrorCode) : "FAILED", `${node}: ${message}`, { fix });
}

function safeJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
