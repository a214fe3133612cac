import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Progress } from "../types.ts";
import { ask, send, type LxdRequest } from "./client.ts";

/** How long LXD may take for each kind of work, in milliseconds. */
export const deadlines = {
  create: 600_000,
  update: 120_000,
  start: 60_000,
  stop: 60_000,
  freeze: 30_000,
  remove: 120_000,
  image: 900_000,
  snapshot: 600_000,
  backup: 1_800_000,
  walk: 120_000,
  pool: 60_000,
  build: 900_000,
} as const;

// one wait call lasts at most this long, so that progress shows and an abort is noticed by a silent server too
const sliceSeconds = 2;

const operationSchema = z.object({
  id: z.string(),
  status: z.string(),
  status_code: z.int(),
  err: z.string(),
  metadata: z.record(z.string(), z.unknown()).nullish(),
});
export type Operation = z.infer<typeof operationSchema>;

export interface Wait {
  deadlineMillis: number;
  signal?: AbortSignal | undefined;
  status?: ((text: string) => void) | undefined;
}

/** Sends a request and waits for the operation it begins, if it begins one; a failed operation is an error in LXD's own words. */
export async function perform(rest: Rest, request: LxdRequest, wait: Wait): Promise<Operation | undefined> {
  const end = Date.now() + wait.deadlineMillis;
  for (;;) {
    try {
      return await performOnce(rest, request, wait);
    } catch (error) {
      // work that an interrupted call began a moment ago is not yet among LXD's operations
      const busy = error instanceof CloudletError && error.message.includes("Instance is busy running");
      if (!busy || request.body instanceof Readable || Date.now() > end) throw error;
      await delay(100, undefined, { signal: wait.signal });
    }
  }
}

/** Path of the operation that a request begins; undefined when it was done at once. */
export async function begin(rest: Rest, request: LxdRequest, wait: Wait): Promise<string | undefined> {
  wait.signal?.throwIfAborted();
  // LXD answers at once, and only who has the answer can cancel; an upload takes its time
  const signal = request.body instanceof Readable ? wait.signal : undefined;
  const envelope = await send(rest, { ...request, signal });
  return envelope.type === "async" ? envelope.operation : undefined;
}

async function performOnce(rest: Rest, request: LxdRequest, wait: Wait): Promise<Operation | undefined> {
  const path = await begin(rest, request, wait);
  if (path === undefined) return undefined;
  const operation = await finish(rest, { path, what: request.what }, wait);
  if (operation.status_code === 200) return operation;
  if (operation.status_code === 401) throw new CloudletError("ABORTED", `${rest.label}: ${request.what} was cancelled`);
  throw new CloudletError("FAILED", `${rest.label}: cannot ${request.what}: ${operation.err}`);
}

/** Waits until an operation has ended, well or not; cancels it at the deadline and on abort. */
export async function finish(rest: Rest, operation: { path: string; what: string }, wait: Wait): Promise<Operation> {
  const { path, what } = operation;
  const end = Date.now() + wait.deadlineMillis;
  try {
    for (;;) {
      const left = Math.ceil((end - Date.now()) / 1000);
      if (left <= 0) throw new CloudletError("TIMEOUT", `${rest.label} did not ${what} within ${String(wait.deadlineMillis / 1000)} s`);
      const slice = Math.min(left, sliceSeconds);
      const current = await ask(
        rest,
        { method: "GET", path: `${path}/wait?timeout=${String(slice)}`, what, signal: wait.signal },
        operationSchema,
      );
      // 200 and more: success, failure (400), cancelled (401)
      if (current.status_code >= 200) return current;
      const text = progressText(current);
      if (text !== undefined) wait.status?.(`${what}: ${text}`);
    }
  } catch (error) {
    throw await afterwards(rest, path, error);
  }
}

const runningSchema = z.object({
  running: z
    .array(z.object({ id: z.string(), description: z.string(), resources: z.record(z.string(), z.array(z.string()).nullish()).nullish() }))
    .optional(),
});

/** Waits for work on a container that an earlier, interrupted call has begun; commands that run in it are no such work. */
export async function settle(rest: Rest, name: string, progress: Progress): Promise<void> {
  const what = `finish earlier work on ${name}`;
  const found = await ask(rest, { method: "GET", path: "/1.0/operations?recursion=1", what, signal: progress.signal }, runningSchema);
  for (const operation of found.running ?? []) {
    if (operation.description === "Executing command" || operation.resources?.instances?.includes(`/1.0/instances/${name}`) !== true)
      continue;
    progress.status(`waiting for LXD on ${name}: ${operation.description}`);
    try {
      await finish(rest, { path: `/1.0/operations/${operation.id}`, what }, waitOf(progress, deadlines.backup));
    } catch (error) {
      // how it ended is seen by looking at the container; whether LXD answers at all, too
      if (!(error instanceof CloudletError) || error.code !== "UNREACHABLE") throw error;
    }
  }
}

/** What LXD says about how far it is: `Unpack: 40% (20MB/s)`. */
export function progressText(operation: Operation): string | undefined {
  for (const [key, value] of Object.entries(operation.metadata ?? {})) {
    if (key.endsWith("_progress") && typeof value === "string" && value !== "") return value;
  }
  return undefined;
}

export function waitOf(progress: Progress, deadlineMillis: number): Wait {
  return { deadlineMillis, signal: progress.signal, status: progress.status };
}

async function afterwards(rest: Rest, path: string, error: unknown): Promise<unknown> {
  if (!(error instanceof CloudletError)) return error;
  // an operation that nobody knows any more ended with the daemon that ran it
  if (error.code === "NOT_FOUND")
    return new CloudletError("UNREACHABLE", `${error.message}: LXD was restarted meanwhile`, { fix: "run the same command again" });
  if (error.code === "ABORTED" || error.code === "TIMEOUT") {
    // some operations cannot be cancelled: LXD says so, and they end by themselves
    await send(rest, { method: "DELETE", path, what: "cancel an operation", timeoutMillis: 5_000 }).catch(() => undefined);
  }
  return error;
}
