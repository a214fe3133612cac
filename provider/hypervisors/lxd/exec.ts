import { randomUUID } from "node:crypto";
import { text } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import type { InstanceExecResult } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import { download, send } from "./client.ts";
import { begin, finish, type Operation } from "./operations.ts";

export interface Execution {
  guest: string;
  command: string[];
  environment?: Record<string, string> | undefined;
  cwd?: string;
  timeoutMillis: number;
  signal?: AbortSignal | undefined;
}

const marker = "CLOUDLET_EXEC";

const outcomeSchema = z.object({ return: z.int(), output: z.record(z.string(), z.string()).optional() });

/** Runs a command in a running container to its end; at the deadline and on abort the command is killed. */
export async function execute(rest: Rest, execution: Execution): Promise<InstanceExecResult> {
  const mark = randomUUID();
  const what = `run ${execution.command[0] ?? "nothing"} in ${execution.guest}`;
  const wait = { deadlineMillis: execution.timeoutMillis, signal: execution.signal };
  const path = await post(rest, execution, { what, mark });
  let operation: Operation;
  try {
    operation = await finish(rest, { path, what }, wait);
  } catch (error) {
    // LXD cannot cancel an exec without websockets: the mark in its environment finds it, with its children
    if (error instanceof CloudletError && (error.code === "TIMEOUT" || error.code === "ABORTED")) await kill(rest, execution.guest, mark);
    throw error;
  }
  const outcome = outcomeSchema.safeParse(operation.metadata);
  if (!outcome.success) throw new CloudletError("FAILED", `${rest.label}: cannot ${what}: ${operation.err}`);
  const [stdout, stderr] = await Promise.all([
    takeLog(rest, outcome.data.output?.["1"], what),
    takeLog(rest, outcome.data.output?.["2"], what),
  ]);
  return { stdout, stderr: operation.err === "" ? stderr : `${stderr}${operation.err}\n`, exitCode: outcome.data.return };
}

async function post(rest: Rest, execution: Execution, { what, mark }: { what: string; mark: string }): Promise<string> {
  const body = {
    command: execution.command,
    environment: { ...execution.environment, [marker]: mark },
    "record-output": true,
    "wait-for-websocket": false,
    interactive: false,
    ...(execution.cwd === undefined ? {} : { cwd: execution.cwd }),
  };
  const path = await begin(
    rest,
    { method: "POST", path: `/1.0/instances/${execution.guest}/exec`, body, what },
    { deadlineMillis: execution.timeoutMillis, signal: execution.signal },
  );
  if (path === undefined) throw new CloudletError("FAILED", `${rest.label}: cannot ${what}: LXD began no operation`);
  return path;
}

async function kill(rest: Rest, guest: string, mark: string): Promise<void> {
  const script = `for p in /proc/[0-9]*; do if tr '\\0' '\\n' <$p/environ 2>/dev/null | grep -qx '${marker}=${mark}'; then kill -KILL "\${p#/proc/}"; fi; done`;
  const body = { command: ["sh", "-c", script], "record-output": false, "wait-for-websocket": false, interactive: false };
  await send(rest, {
    method: "POST",
    path: `/1.0/instances/${guest}/exec`,
    body,
    what: `end a command in ${guest}`,
    timeoutMillis: 5_000,
  }).catch(() => undefined);
  // what LXD recorded goes with the operation's end, a moment later
  await delay(50);
}

async function takeLog(rest: Rest, path: string | undefined, what: string): Promise<string> {
  if (path === undefined) return "";
  const recorded = await text((await download(rest, { method: "GET", path, what: `read the output of: ${what}` })).body);
  await send(rest, { method: "DELETE", path, what: "remove a recorded output" }).catch(() => undefined);
  return recorded;
}
