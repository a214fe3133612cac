import { spawn } from "node:child_process";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { CloudletError } from "../core/errors.ts";

export type Command = [string, ...string[]];

export interface RunOptions {
  stdin?: string | Buffer | Readable;
  /** Default 60 000. */
  timeoutMillis?: number;
  signal?: AbortSignal | undefined;
  /** Added to the agent's own environment. */
  env?: Record<string, string>;
  /** Exit codes that are results, not errors. Default: only 0. */
  okCodes?: number[];
}

export interface RunResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}

/** The type of `run`, for those who take it as an argument. */
export type Run = (command: Command, options?: RunOptions) => Promise<RunResult>;

// a command that floods its output must not eat the agent's memory
const outputLimit = 64 * 1024 * 1024;

/** Runs one child process to its end; arguments are never logged, as they may hold what users typed. */
export async function run(command: Command, options: RunOptions = {}): Promise<RunResult> {
  const [program, ...args] = command;
  options.signal?.throwIfAborted();
  // a group of its own, so that a deadline ends the command's children too
  const child = spawn(program, args, {
    stdio: ["pipe", "pipe", "pipe"],
    env: { ...process.env, LC_ALL: "C", ...options.env },
    detached: true,
  });
  const stdout = collect(child.stdout);
  const stderr = collect(child.stderr);
  let ended: "timeout" | "abort" | undefined;
  const end = (why: "timeout" | "abort") => () => {
    ended = why;
    killGroup(child.pid);
  };
  const onAbort = end("abort");
  const timer = setTimeout(end("timeout"), options.timeoutMillis ?? 60_000);
  options.signal?.addEventListener("abort", onAbort, { once: true });
  try {
    const exit = new Promise<{ code: number | null; signal: string | null }>((resolve, reject) => {
      child.once("error", (cause) => reject(new CloudletError("FAILED", `${program} cannot be started: ${cause.message}`, { cause })));
      child.once("close", (code, signal) => resolve({ code, signal }));
    });
    const [{ code, signal }, inputError] = await Promise.all([exit, feed(child.stdin, options.stdin)]);
    const result = { stdout: stdout(), stderr: stderr(), exitCode: code ?? -1 };
    if (ended === "abort") throw new CloudletError("ABORTED", `${program} was cancelled`);
    if (ended === "timeout")
      throw new CloudletError(
        "TIMEOUT",
        `${program} did not end within ${String(options.timeoutMillis ?? 60_000)} ms${lastLines(result.stderr)}`,
      );
    if (code === null || !(options.okCodes ?? [0]).includes(code)) {
      throw new CloudletError(
        "FAILED",
        `${program} ended with ${code === null ? `signal ${signal ?? "?"}` : `exit code ${String(code)}`}${lastLines(result.stderr || result.stdout)}`,
      );
    }
    if (inputError !== undefined) throw inputError;
    return result;
  } finally {
    clearTimeout(timer);
    options.signal?.removeEventListener("abort", onAbort);
  }
}

function killGroup(pid: number | undefined): void {
  if (pid === undefined) return;
  try {
    process.kill(-pid, "SIGKILL");
  } catch {
    // already ended
  }
}

function collect(stream: Readable): () => string {
  const chunks: Buffer[] = [];
  let bytes = 0;
  stream.on("data", (chunk: Buffer) => {
    if (bytes < outputLimit) chunks.push(chunk);
    bytes += chunk.length;
  });
  return () => Buffer.concat(chunks).toString("utf8");
}

/** A command may end without reading its input: only an error of the source itself matters. */
async function feed(target: NodeJS.WritableStream, input: RunOptions["stdin"]): Promise<Error | undefined> {
  // a late EPIPE may come after the pipeline has let go of the stream
  target.on("error", () => undefined);
  if (!(input instanceof Readable)) {
    target.end(input ?? "");
    return undefined;
  }
  try {
    await pipeline(input, target);
    return undefined;
  } catch (error) {
    if (isBrokenPipe(error)) return undefined;
    return error instanceof Error ? error : new Error(String(error));
  }
}

function isBrokenPipe(error: unknown): boolean {
  return (
    error instanceof Error &&
    "code" in error &&
    (error.code === "EPIPE" || error.code === "ERR_STREAM_PREMATURE_CLOSE" || error.code === "ECONNRESET")
  );
}

function lastLines(text: string): string {
  const lines = text.trim().split("\n").slice(-5).join("\n").slice(-2000);
  return lines === "" ? "" : `: ${lines}`;
}
