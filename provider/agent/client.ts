import { createHash } from "node:crypto";
import type { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CloudletError, codeOf, errorCodes } from "../core/errors.ts";
import type { ErrorCode } from "../core/errors.ts";
import type { Rest, RestRequest, RestResponse } from "../transport/types.ts";
import type { AgentClient, CallOptions } from "./clientTypes.ts";
import { factsSchema } from "./factsProtocol.ts";
import { handoffSchema } from "./handoffProtocol.ts";
import { agentRestarted, jobErrorSchema, jobEventSchema } from "./jobProtocol.ts";
import {
  execResultSchema,
  guestName,
  hypervisorStatusSchema,
  imageStatusSchema,
  infoSchema,
  instanceStatusSchema,
  overlayStatusSchema,
  preseedStatusSchema,
  verbs,
  volumeStatusSchema,
} from "./protocol.ts";
import type { JobEvent } from "./jobProtocol.ts";
import type { Verb, VerbArgs, VerbResult } from "./protocol.ts";

const callMillis = 60_000;
const blobMillis = 2 * 3600_000;
const jobMillis = 30 * 60_000;
// the agent sends an empty line every 10 s
const silenceMillis = 30_000;
const pauseMillis = [200, 500, 1_000, 2_000, 5_000];
const mostRestarts = 3;
const answerLimit = 64 * 1024 * 1024;

const keptOverlaysSchema = z.array(overlayStatusSchema.extend({ name: z.string(), owner: z.string() }));
const errorAnswerSchema = z.object({ error: jobErrorSchema });

/** The agent of one node over one REST connection. */
export function createAgentClient(rest: Rest): AgentClient {
  const instancePath = (id: string): string => `/v1/instances/${encodeURIComponent(id)}`;
  return {
    label: rest.label,
    info: (options) => get(rest, "/v1/info", { schema: infoSchema, options }),
    facts: (options) => get(rest, "/v1/facts", { schema: factsSchema, options }),
    hypervisor: (options) => orUndefined(get(rest, "/v1/hypervisor", { schema: hypervisorStatusSchema, options })),
    instance: (id, options) => orUndefined(get(rest, instancePath(id), { schema: instanceStatusSchema, options })),
    foreign: ({ name, id, owner }, options) =>
      orUndefined(get(rest, `${keptPath("foreign", name, owner)}&id=${encodeURIComponent(id)}`, { schema: instanceStatusSchema, options })),
    instances: (options) => get(rest, "/v1/instances", { schema: z.array(instanceStatusSchema), options }),
    log: (id, lines, options) => call(rest, { method: "GET", path: `${instancePath(id)}/log?lines=${String(lines)}` }, options),
    handoffs: (id, options) => get(rest, `${instancePath(id)}/handoffs`, { schema: z.array(handoffSchema), options }),
    async exec(id, request, options = {}) {
      const timeoutMillis = ((request.timeoutSeconds ?? 60) + 15) * 1000;
      const body = await call(
        rest,
        { method: "POST", path: `${instancePath(id)}/exec`, body: { ...request } },
        { timeoutMillis, ...options },
      );
      return parse(rest, execResultSchema, body);
    },
    volume: (id, options) => orUndefined(get(rest, `/v1/volumes/${encodeURIComponent(id)}`, { schema: volumeStatusSchema, options })),
    async hasBlob(digest, options) {
      const { status } = await send(rest, { method: "HEAD", path: `/v1/blobs/${digest}` }, { timeoutMillis: callMillis, ...options });
      if (status !== 200 && status !== 404)
        throw new CloudletError("FAILED", `${rest.label} answered ${String(status)} when asked for data ${digest}`);
      return status === 200;
    },
    async putBlob({ digest, bytes, stream }, options) {
      await call(
        rest,
        {
          method: "PUT",
          path: `/v1/blobs/${digest}`,
          headers: { "content-length": String(bytes), "content-type": "application/octet-stream" },
          body: stream(),
        },
        { timeoutMillis: blobMillis, ...options },
      );
    },
    getBlob: (digest, options) => getBlob(rest, digest, options),
    image: (name, owner, options) => orUndefined(get(rest, keptPath("images", name, owner), { schema: imageStatusSchema, options })),
    overlay: (name, owner, options) => orUndefined(get(rest, keptPath("overlays", name, owner), { schema: overlayStatusSchema, options })),
    preseed: (id, owner, options) => orUndefined(get(rest, keptPath("preseeds", id, owner), { schema: preseedStatusSchema, options })),
    overlays: (options) => get(rest, "/v1/overlays", { schema: keptOverlaysSchema, options }),
    run: (verb, args, options) => runJob(rest, { verb, args }, options),
  };
}

function keptPath(what: "foreign" | "images" | "overlays" | "preseeds", name: string, owner: string): string {
  return `/v1/${what}/${encodeURIComponent(name)}?owner=${encodeURIComponent(owner)}`;
}

async function getBlob(rest: Rest, digest: string, options: CallOptions = {}): ReturnType<AgentClient["getBlob"]> {
  const response = await send(rest, { method: "GET", path: `/v1/blobs/${digest}` }, { timeoutMillis: callMillis, ...options });
  const bytes = Number(response.headers["content-length"]);
  if (response.status === 200 && Number.isSafeInteger(bytes)) return { bytes, stream: response.body };
  const text = await textOf(rest, response);
  if (response.status === 404) return undefined;
  throw errorOf(rest, response.status, text);
}

/** The same request has the same id, so that asking again attaches to what is still running. */
export function jobId<V extends Verb>(verb: V, args: VerbArgs<V>): string {
  const digest = createHash("sha256").update(JSON.stringify(args)).digest("hex").slice(0, 12);
  const id = "spec" in args && "id" in args.spec ? args.spec.id : "id" in args ? args.id : undefined;
  return `${verb}-${id === undefined ? "node" : guestName(id)}-${digest}`;
}

async function runJob<V extends Verb>(
  rest: Rest,
  { verb, args }: { verb: V; args: VerbArgs<V> },
  options: CallOptions = {},
): Promise<VerbResult<V>> {
  const id = jobId(verb, args);
  const path = `/v1/jobs/${encodeURIComponent(id)}`;
  const timeout = AbortSignal.timeout(options.timeoutMillis ?? jobMillis);
  const signal = options.signal === undefined ? timeout : AbortSignal.any([options.signal, timeout]);
  const follower: Follower = { next: 0, lost: false, restarts: 0, onEvent: options.onEvent };
  try {
    const end = await persist(follower, signal, async (attempt) => {
      // after a lost connection the job most likely still runs, or has ended: look before asking again
      if (attempt > 0) {
        const ended = await follow(rest, path, { follower, signal }).catch(unlessMissing);
        if (ended !== undefined && !(wasCutOff(ended) && follower.restarts++ < mostRestarts)) return ended;
      }
      await call(rest, { method: "PUT", path, body: { verb, args } }, { signal, timeoutMillis: callMillis });
      follower.next = 0;
      const ended = await follow(rest, path, { follower, signal });
      if (ended === undefined) throw new CloudletError("UNREACHABLE", `${rest.label} ended the events of ${verb} too early`);
      return ended;
    });
    if ("error" in end) throw end.error;
    // the schema of this very verb has just accepted it
    return parse(rest, verbs[verb].result, end.value) as VerbResult<V>;
  } catch (error) {
    if (!signal.aborted) throw error;
    // the job must not go on unseen when whoever asked has given up
    await call(rest, { method: "DELETE", path }, { timeoutMillis: 5_000 }).catch(() => undefined);
    const what = `${verb} on ${rest.label}`;
    if (options.signal?.aborted === true) throw new CloudletError("ABORTED", `${what} was cancelled`, { cause: error });
    throw new CloudletError(
      follower.lost ? "UNREACHABLE" : "TIMEOUT",
      `${what} did not end within ${String(Math.round((options.timeoutMillis ?? jobMillis) / 1000))} s`,
      { cause: error },
    );
  }
}

/** Tries again while the connection is lost: about a minute, and never past the deadline. */
async function persist<T>(follower: Follower, signal: AbortSignal, attempt: (count: number) => Promise<T>): Promise<T> {
  for (let count = 0; ; count++) {
    try {
      return await attempt(count);
    } catch (error) {
      if (signal.aborted || codeOf(error) !== "UNREACHABLE") throw error;
      follower.lost = true;
      if (count >= pauseMillis.length * 4) throw error;
      await sleep(pauseMillis[Math.min(count, pauseMillis.length - 1)], undefined, { signal });
    }
  }
}

/** How a job ended; a failure is a value here, so that it is never taken for a lost connection. */
type JobEnd = { value: unknown } | { error: CloudletError };

interface Follower {
  /** Sequence number of the next event that was not seen yet. */
  next: number;
  /** Whether the agent did not answer when it was asked last. */
  lost: boolean;
  /** How often the agent was restarted in the middle of the job. */
  restarts: number;
  onEvent: CallOptions["onEvent"];
}

/** A job is idempotent, so one that ended with its agent is simply asked for again. */
function wasCutOff(end: JobEnd): boolean {
  return "error" in end && end.error.code === "ABORTED" && end.error.message.endsWith(agentRestarted);
}

/** Follows a job to its end. undefined = the stream ended before the job did. */
async function follow(
  rest: Rest,
  path: string,
  { follower, signal }: { follower: Follower; signal: AbortSignal },
): Promise<JobEnd | undefined> {
  const response = await send(
    rest,
    { method: "GET", path: `${path}/events?from=${String(follower.next)}` },
    { signal, timeoutMillis: silenceMillis },
  );
  if (response.status !== 200) throw errorOf(rest, response.status, await textOf(rest, response));
  follower.lost = false;
  for await (const event of eventsOf(rest, response.body)) {
    follower.next = event.seq + 1;
    follower.onEvent?.(event);
    if (event.type === "failed")
      return { error: new CloudletError(toCode(event.error.code), `${rest.label}: ${event.error.message}`, { fix: event.error.fix }) };
    if (event.type === "done") return { value: event.result };
  }
  return undefined;
}

async function* eventsOf(rest: Rest, body: Readable): AsyncGenerator<JobEvent> {
  let pending = "";
  const decoder = new TextDecoder();
  try {
    for await (const chunk of body as AsyncIterable<Buffer>) {
      const lines = (pending + decoder.decode(chunk, { stream: true })).split("\n");
      pending = lines.pop() ?? "";
      for (const line of lines) if (line !== "") yield parse(rest, jobEventSchema, line);
    }
  } catch (error) {
    throw lost(rest, error);
  } finally {
    body.destroy();
  }
}

async function get<S extends z.ZodType>(
  rest: Rest,
  path: string,
  { schema, options }: { schema: S; options: CallOptions | undefined },
): Promise<z.infer<S>> {
  return parse(rest, schema, await call(rest, { method: "GET", path }, options));
}

/** One request; the text of its answer, or the agent's error. */
async function call(rest: Rest, request: RestRequest, options: CallOptions = {}): Promise<string> {
  const response = await send(rest, request, { timeoutMillis: callMillis, ...options });
  const text = await textOf(rest, response);
  if (response.status >= 400) throw errorOf(rest, response.status, text);
  return text;
}

function send(rest: Rest, request: RestRequest, { signal, timeoutMillis }: CallOptions): Promise<RestResponse> {
  return rest.request({
    ...request,
    ...(signal === undefined ? {} : { signal }),
    ...(timeoutMillis === undefined ? {} : { timeoutMillis }),
  });
}

async function textOf(rest: Rest, response: RestResponse): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  try {
    for await (const chunk of response.body as AsyncIterable<Buffer>) {
      bytes += chunk.length;
      if (bytes > answerLimit)
        throw new CloudletError("FAILED", `${rest.label} answered with more than ${String(answerLimit / 1024 / 1024)} MiB`);
      chunks.push(chunk);
    }
  } catch (error) {
    throw lost(rest, error);
  }
  return Buffer.concat(chunks).toString("utf8");
}

function parse<S extends z.ZodType>(rest: Rest, schema: S, value: unknown): z.infer<S> {
  try {
    return schema.parse(typeof value === "string" ? JSON.parse(value) : value);
  } catch (cause) {
    throw new CloudletError(
      "BUG",
      `${rest.label} answered something that does not fit the protocol: ${cause instanceof Error ? cause.message : String(cause)}`,
      { cause },
    );
  }
}

function errorOf(rest: Rest, status: number, text: string): CloudletError {
  try {
    const { error } = errorAnswerSchema.parse(JSON.parse(text));
    return new CloudletError(toCode(error.code), `${rest.label}: ${error.message}`, { fix: error.fix });
  } catch {
    return new CloudletError("FAILED", `${rest.label} answered ${String(status)}: ${text.slice(0, 500)}`);
  }
}

function toCode(code: string): ErrorCode {
  return Object.keys(errorCodes).find((known): known is ErrorCode => known === code) ?? "BUG";
}

/** A body that breaks off is a lost connection, whatever the library below calls it. */
function lost(rest: Rest, error: unknown): unknown {
  return codeOf(error) === "BUG"
    ? new CloudletError("UNREACHABLE", `the connection to ${rest.label} was lost`, { cause: error })
    : codeOf(error) === "TIMEOUT"
      ? new CloudletError("UNREACHABLE", `${rest.label} fell silent`, { cause: error })
      : error;
}

function unlessMissing(error: unknown): undefined {
  if (codeOf(error) !== "NOT_FOUND") throw error;
  return undefined;
}

async function orUndefined<T>(answer: Promise<T>): Promise<T | undefined> {
  return answer.catch(unlessMissing);
}
