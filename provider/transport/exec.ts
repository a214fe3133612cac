import { Readable } from "node:stream";
import { StringDecoder } from "node:string_decoder";
import { setTimeout as pause } from "node:timers/promises";
import { CloudletError } from "../core/errors.ts";
import type { Link, RemoteCommand } from "./link.ts";
import type { SshChannel } from "./ssh.ts";
import type { ExecOptions, ExecResult } from "./types.ts";

/** A live link, and how to be root there. */
export interface Access {
  link: Link;
  /** The login user is not root. */
  sudo: boolean;
}

const killMillis = 5000;
// a command that floods its output must not eat the operator's memory
const outputLimit = 64 * 1024 * 1024;

/** Runs one command with root rights. When it is over, by itself or not, nothing of it runs on the node any more. */
export async function execute(access: Access, command: string, options: ExecOptions = {}): Promise<ExecResult> {
  const { label } = access.link;
  const timeoutMillis = options.timeoutMillis ?? 60_000;
  const deadline = deadlineOf(timeoutMillis, options.signal);
  try {
    const running = await access.link.command(asRoot(access, announced(command)), deadline.signal);
    return await follow(running, { access, options, signal: deadline.signal });
  } catch (error) {
    if (options.signal?.aborted) throw new CloudletError("ABORTED", `a command on ${label} was cancelled`);
    if (deadline.signal.aborted)
      throw new CloudletError(
        "TIMEOUT",
        `a command on ${label} did not end within ${String(timeoutMillis)} ms${error instanceof OutputError ? error.tail : ""}`,
      );
    if (error instanceof CloudletError) throw error;
    throw new CloudletError("UNREACHABLE", `${label} did not run a command: ${error instanceof Error ? error.message : String(error)}`, {
      cause: error,
    });
  } finally {
    deadline.clear();
  }
}

/** The command line for the login shell, whichever shell that is. */
export function asRoot({ sudo }: Pick<Access, "sudo">, script: string): string {
  return sudo ? `exec sudo -n -- sh -c ${quote(script)}` : `exec sh -c ${quote(script)}`;
}

export function quote(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The last lines of a program's output, for messages. */
export function lastLines(text: string): string {
  const lines = text.trim().split("\n").slice(-5).join("\n").slice(-2000);
  return lines === "" ? "" : `: ${lines}`;
}

/** A signal for caller's cancellation and deadline together; the timer goes with `clear`. */
export function deadlineOf(millis: number, signal: AbortSignal | undefined): { signal: AbortSignal; clear(): void } {
  const timeout = new AbortController();
  const timer = setTimeout(() => timeout.abort(), millis);
  return { signal: signal === undefined ? timeout.signal : AbortSignal.any([signal, timeout.signal]), clear: () => clearTimeout(timer) };
}

/** Says on stderr which process group it runs in before anything else: sshd takes no signals for root's commands, so they are killed by number. */
function announced(script: string): string {
  return `read -r _ _ _ _ g _ </proc/$$/stat; echo "${announcement}$g" >&2\n${script}`;
}

const announcement = "#cloudlet-group ";

class OutputError extends Error {
  readonly tail: string;
  constructor(tail: string) {
    super("stopped");
    this.tail = tail;
  }
}

interface Running {
  access: Access;
  options: ExecOptions;
  signal: AbortSignal;
}

function follow(command: RemoteCommand, { access, options, signal }: Running): Promise<ExecResult> {
  const { channel, exitCode } = command;
  const group = new GroupFilter();
  const stdout = new Output(options.onOutput);
  const stderr = new Output(options.onOutput);
  return new Promise<ExecResult>((resolve, reject) => {
    const stop = (error: Error): void => {
      stopped = error;
      void kill(command, access, group);
    };
    let stopped: Error | undefined;
    const onAbort = (): void => stop(new OutputError(lastLines(stderr.text() || stdout.text())));
    signal.addEventListener("abort", onAbort, { once: true });
    channel.on("data", (chunk: Buffer) => stdout.add(chunk));
    channel.stderr.on("data", (chunk: Buffer) => stderr.add(group.take(chunk)));
    void command.closed.then(() => {
      signal.removeEventListener("abort", onAbort);
      stderr.add(group.rest());
      const code = exitCode();
      if (stopped !== undefined) reject(stopped);
      else if (code === undefined)
        reject(
          access.link.alive
            ? new CloudletError("UNREACHABLE", `${access.link.label} closed a command without an exit code`)
            : access.link.lostError(),
        );
      else resolve({ stdout: stdout.text(), stderr: stderr.text(), exitCode: code });
    });
    feed(channel, options.stdin, stop);
  });
}

/** A command may end without reading its input: only an error of the source itself matters. */
function feed(channel: SshChannel, input: ExecOptions["stdin"], stop: (error: Error) => void): void {
  channel.on("error", () => undefined);
  if (!(input instanceof Readable)) {
    channel.end(input ?? "");
    return;
  }
  input.on("error", (error) =>
    stop(new CloudletError("FAILED", `the input of a command cannot be read: ${error.message}`, { cause: error })),
  );
  channel.on("close", () => {
    input.unpipe(channel);
    input.destroy();
  });
  input.pipe(channel);
}

/** Ends the process group, first politely, so that traps can clean up; then closes the channel. */
async function kill({ channel, abandon, closed }: RemoteCommand, access: Access, filter: GroupFilter): Promise<void> {
  // a command that has only just been sent has not said its number yet
  await Promise.race([filter.announced, closed, pause(killMillis, undefined, { ref: false })]);
  if (filter.number !== undefined && access.link.alive) {
    const group = `-- -${String(filter.number)}`;
    const gone = `for i in 1 2 3 4 5 6 7 8 9 10; do kill -s 0 ${group} || exit 0; sleep 0.1; done`;
    const script = `kill -s TERM ${group}; ${gone}; kill -s KILL ${group}; ${gone}`;
    await finished(access, script).catch(() => undefined);
  }
  channel.close();
  // a far end that no longer answers must not keep the caller waiting
  const timer = setTimeout(abandon, 1000);
  void closed.then(() => clearTimeout(timer));
}

async function finished(access: Access, script: string): Promise<void> {
  const signal = AbortSignal.timeout(killMillis);
  const { channel, closed, abandon } = await access.link.command(asRoot(access, `{ ${script}; } 2>/dev/null`), signal, true);
  signal.addEventListener("abort", abandon, { once: true });
  channel.resume();
  channel.stderr.resume();
  channel.end();
  await closed;
}

/** Takes the announcement out of stderr, with what login and sudo say before the command: that belongs to it only where it never starts. */
class GroupFilter {
  number: number | undefined;
  readonly announced: Promise<void>;
  #tell: () => void = () => undefined;
  #held: Buffer = Buffer.alloc(0);

  constructor() {
    this.announced = new Promise((resolve) => (this.#tell = resolve));
  }

  take(chunk: Buffer): Buffer {
    if (this.number !== undefined) return chunk;
    this.#held = Buffer.concat([this.#held, chunk]);
    const match = new RegExp(`^${announcement}(\\d+)\\n`, "m").exec(this.#held.toString("latin1"));
    if (match === null) return Buffer.alloc(0);
    this.number = Number(match[1]);
    this.#tell();
    const rest = this.#held.subarray(match.index + match[0].length);
    this.#held = Buffer.alloc(0);
    return rest;
  }

  rest(): Buffer {
    return this.#held;
  }
}

class Output {
  readonly #listener: ((text: string) => void) | undefined;
  readonly #decoder = new StringDecoder("utf8");
  #text = "";

  constructor(listener: ((text: string) => void) | undefined) {
    this.#listener = listener;
  }

  add(chunk: Buffer): void {
    if (chunk.length === 0) return;
    const text = this.#decoder.write(chunk);
    if (this.#text.length < outputLimit) this.#text += text;
    this.#listener?.(text);
  }

  text(): string {
    return this.#text;
  }
}
