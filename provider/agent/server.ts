import http from "node:http";
import type { IncomingMessage, ServerResponse } from "node:http";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { z } from "zod";
import { CloudletError } from "../core/errors.ts";
import { sendFile } from "./blobResponse.ts";
import type { Facts } from "./factsProtocol.ts";
import { foreignStatus } from "./foreign.ts";
import { instanceExec, instanceLog, instanceStatus, instanceStatuses } from "./instances.ts";
import { jobIdPattern, toJobError } from "./jobs.ts";
import type { Jobs } from "./jobs.ts";
import { jobRequestSchema } from "./jobProtocol.ts";
import { digestSchema, execRequestSchema, idSchema } from "./protocol.ts";
import type { JobEvent } from "./jobProtocol.ts";
import type { AgentInfo } from "./protocol.ts";
import type { Services } from "./services.ts";
import { imageStatus } from "./synthesis/images.ts";
import { keptOverlayStatus } from "./synthesis/overlays.ts";
import { preseedStatus } from "./synthesis/preseeds.ts";
import { blobsOf } from "./synthesis/references.ts";
import { workOf } from "./verbs.ts";
import type { VerbTable } from "./verbs.ts";

export interface ServerOptions {
  services: Services;
  jobs: Jobs;
  verbs: VerbTable;
  info(): AgentInfo;
  facts(): Promise<Facts>;
}

interface Call {
  request: IncomingMessage;
  response: ServerResponse;
  /** Decoded parts of the path that stand where the route has a capital word. */
  parts: string[];
  query: URLSearchParams;
  /** Aborted when whoever asked has gone. */
  signal: AbortSignal;
}

type Handler = (options: ServerOptions, call: Call) => Promise<unknown>;

const bodyLimit = 32 * 1024 * 1024;
const heartbeatMillis = 10_000;

/*
 * Plain requests beside jobs (all answers JSON unless said otherwise; errors are `{error: jobError}` with a 4xx or 5xx status):
 *   GET    /v1/info                         AgentInfo
 *   GET    /v1/facts                        Facts
 *   GET    /v1/hypervisor                   HypervisorStatus, 404 where there is none
 *   GET    /v1/instances/ID                 InstanceStatus, 404 where nothing is recorded (ID is URI-encoded)
 *   GET    /v1/instances                    InstanceStatus[]
 *   GET    /v1/instances/ID/log?lines=N     text/plain
 *   GET    /v1/instances/ID/handoffs        Handoff[], newest first; empty where none is known
 *   POST   /v1/instances/ID/exec            ExecRequest -> InstanceExecResult
 *   GET    /v1/volumes/ID                   VolumeStatus, 404
 *   HEAD   /v1/blobs/DIGEST                 200 or 404; an overlay's digest: 200 only when its index and pack are there too
 *   GET    /v1/blobs/DIGEST                 the bytes, 404
 *   GET    /v1/foreign/NAME?id=ID&owner=OWNER  InstanceStatus of a guest made without us, as that cloudlet; 404
 *   GET    /v1/images/NAME?owner=OWNER      ImageStatus, 404
 *   GET    /v1/overlays/NAME?owner=OWNER    OverlayStatus, 404; without name and owner all that are kept, each with these
 *   GET    /v1/preseeds/ID?owner=OWNER      PreseedStatus, 404 where anything of it is missing
 *   PUT    /v1/blobs/DIGEST                 body = bytes; verified, then visible; 201, or 422 INTEGRITY
 *   GET    /v1/jobs/JOB/events?from=SEQ     application/x-ndjson of JobEvent until the job has ended
 *   PUT    /v1/jobs/JOB                     JobRequest; attaches when JOB is running, else starts it
 *   DELETE /v1/jobs/JOB                     cancels
 */
const routes: Record<string, Handler> = {
  "GET /v1/info": ({ info }) => Promise.resolve(info()),
  "GET /v1/facts": ({ facts }) => facts(),
  "GET /v1/hypervisor": async ({ services }) => (await services.hypervisors.status()) ?? missing("this node has no hypervisor"),
  "GET /v1/instances": ({ services }) => instanceStatuses(services),
  "GET /v1/instances/ID": async ({ services }, call) =>
    (await instanceStatus(services, idOf(call))) ?? missing(`cloudlet ${idOf(call)} is not on this node`),
  "GET /v1/instances/ID/log": async ({ services }, call) => {
    const lines = parse(z.coerce.number().int().min(1).max(10_000), call.query.get("lines") ?? "100", "lines");
    call.response.writeHead(200, { "content-type": "text/plain; charset=utf-8" }).end(await instanceLog(services, idOf(call), lines));
  },
  "GET /v1/instances/ID/handoffs": async ({ services }, call) => services.handoffs.list(idOf(call)),
  "POST /v1/instances/ID/exec": async ({ services }, call) =>
    instanceExec(services, idOf(call), { request: parse(execRequestSchema, await readBody(call.request), "request"), signal: call.signal }),
  "GET /v1/foreign/NAME": async ({ services }, call) => {
    const { name, owner } = keptOf(call);
    const id = parse(idSchema, call.query.get("id"), "id");
    return (await foreignStatus(services, { name, id, owner }, call.signal)) ?? missing(`this node's hypervisor has no ${name}`);
  },
  "GET /v1/volumes/ID": async ({ services }, call) =>
    (await services.volumes.status(idOf(call))) ?? missing(`volume ${idOf(call)} is not on this node`),
  "HEAD /v1/blobs/DIGEST": async ({ services }, call) => {
    const parts = await Promise.all((await blobsOf(services, digestOf(call))).map((digest) => services.store.has(digest)));
    call.response.writeHead(parts.every(Boolean) ? 200 : 404).end();
  },
  "GET /v1/blobs/DIGEST": async ({ services }, call) => sendFile(call.request, call.response, await services.store.path(digestOf(call))),
  "GET /v1/images/NAME": async ({ services }, call) => {
    const { name, owner } = keptOf(call);
    return (await imageStatus(services, name, owner)) ?? missing(`image ${name} is not kept on this node`);
  },
  "GET /v1/overlays": ({ services }) => services.overlays.list(),
  "GET /v1/overlays/NAME": async ({ services }, call) => {
    const { name, owner } = keptOf(call);
    return (await keptOverlayStatus(services, name, owner)) ?? missing(`overlay ${name} is not kept on this node`);
  },
  "GET /v1/preseeds/ID": async ({ services }, call) => {
    const { name, owner } = keptOf(call);
    return (await preseedStatus(services, name, owner)) ?? missing(`cloudlet ${name} is not preseeded on this node`);
  },
  "PUT /v1/blobs/DIGEST": async ({ services }, call) => {
    await services.store.put(digestOf(call), () => call.request, Number(call.request.headers["content-length"] ?? 0));
    // already there, or another request has brought it: the body still has to be taken in
    call.request.resume();
    call.response.writeHead(201).end();
  },
  "GET /v1/jobs/JOB/events": async ({ jobs }, call) => {
    const from = parse(z.coerce.number().int().min(0), call.query.get("from") ?? "0", "from");
    await streamEvents(jobs.events(jobOf(call), from, call.signal), call.response);
  },
  "PUT /v1/jobs/JOB": async ({ services, jobs, verbs }, call) => {
    const id = jobOf(call);
    const work = workOf(services, verbs, parse(jobRequestSchema, await readBody(call.request), "request"));
    await jobs.endOfCancelled(id);
    return { id, ...jobs.start(id, work) };
  },
  "DELETE /v1/jobs/JOB": ({ jobs }, call) => {
    jobs.cancel(jobOf(call));
    return Promise.resolve({});
  },
};

const compiled = Object.entries(routes).map(([route, handler]) => {
  const [method = "", path = ""] = route.split(" ");
  return { method, segments: path.split("/"), handler };
});

const statusOf: Record<string, number> = {
  INVALID: 400,
  UNAUTHORIZED: 401,
  REFUSED: 403,
  NOT_FOUND: 404,
  CONFLICT: 409,
  BUSY: 423,
  INTEGRITY: 422,
  ABORTED: 499,
  UNSUPPORTED: 501,
  UNREACHABLE: 503,
  TIMEOUT: 504,
};

/** The agent's REST interface; the caller makes it listen. */
export function createAgentServer(options: ServerOptions): http.Server {
  const server = http.createServer((request, response) => {
    void answer(options, request, response);
  });
  // a blob may take long on a slow link; what stands still is ended by whoever sends
  server.requestTimeout = 0;
  // the operator's side closes idle connections, after seconds: closed from here, one might be closed just when it is used again
  server.keepAliveTimeout = 60_000;
  return server;
}

async function answer(options: ServerOptions, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const gone = new AbortController();
  response.once("close", () => {
    gone.abort();
  });
  try {
    const url = new URL(request.url ?? "/", "http://agent");
    const { handler, parts } = match(request.method ?? "GET", url.pathname);
    const result = await handler(options, { request, response, parts, query: url.searchParams, signal: gone.signal });
    if (!response.headersSent) sendJson(response, 200, result);
  } catch (error) {
    request.resume();
    if (response.headersSent) return void response.destroy();
    const jobError = toJobError(error);
    sendJson(response, statusOf[jobError.code] ?? 500, { error: jobError });
  }
}

function match(method: string, pathname: string): { handler: Handler; parts: string[] } {
  const given = pathname.split("/");
  for (const { method: wanted, segments, handler } of compiled) {
    if (wanted !== method || segments.length !== given.length) continue;
    if (segments.every((segment, i) => isVariable(segment) || segment === given[i])) {
      return { handler, parts: given.filter((_, i) => isVariable(segments[i] ?? "")).map(decode) };
    }
  }
  throw new CloudletError("INVALID", `the agent has no ${method} ${pathname}`, { fix: "use a provider of the agent's version" });
}

function isVariable(segment: string): boolean {
  return /^[A-Z]+$/.test(segment);
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (cause) {
    throw new CloudletError("INVALID", `the path has a part that is not URI-encoded: ${part}`, { cause });
  }
}

function idOf(call: Call): string {
  return parse(idSchema, call.parts[0], "id");
}

function digestOf(call: Call): string {
  return parse(digestSchema, call.parts[0], "digest");
}

function keptOf(call: Call): { name: string; owner: string } {
  return { name: call.parts[0] ?? "", owner: parse(z.string().min(1), call.query.get("owner"), "owner") };
}

function jobOf(call: Call): string {
  return parse(z.string().regex(jobIdPattern), call.parts[0], "job id");
}

function parse<S extends z.ZodType>(schema: S, value: unknown, what: string): z.infer<S> {
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issues = parsed.error.issues.map((issue) => [...issue.path, issue.message].join(": ")).join("; ");
  throw new CloudletError("INVALID", `${what}: ${issues}`);
}

function missing(message: string): never {
  throw new CloudletError("NOT_FOUND", message);
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > bodyLimit) throw new CloudletError("INVALID", `the request is larger than ${String(bodyLimit / 1024 / 1024)} MiB`);
    chunks.push(chunk);
  }
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch (cause) {
    throw new CloudletError("INVALID", "the request is not JSON", { cause });
  }
}

function sendJson(response: ServerResponse, status: number, body: unknown): void {
  response.writeHead(status, { "content-type": "application/json" }).end(JSON.stringify(body));
}

/** Empty lines show a waiting client that the connection is alive. */
async function streamEvents(events: AsyncGenerator<JobEvent>, response: ServerResponse): Promise<void> {
  // an unknown job must still become a 404
  const first = await events.next();
  response.writeHead(200, { "content-type": "application/x-ndjson" });
  const heartbeat = setInterval(() => response.write("\n"), heartbeatMillis);
  try {
    await pipeline(
      Readable.from(
        (async function* () {
          if (first.done !== true) yield `${JSON.stringify(first.value)}\n`;
          for await (const event of events) yield `${JSON.stringify(event)}\n`;
        })(),
      ),
      response,
    );
  } finally {
    clearInterval(heartbeat);
  }
}
