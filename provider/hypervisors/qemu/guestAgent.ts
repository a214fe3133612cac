import { randomInt } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { InstanceExecResult } from "../../agent/protocol.ts";
import { connectJsonLines } from "./jsonLines.ts";

/** QEMU's guest agent inside one guest. Every call makes its own short connection, as the channel takes one client at a time. */
export interface GuestAgent {
  /** Whether the guest agent answers within the time. */
  ping(timeoutMillis: number): Promise<boolean>;
  /** Waits for the guest agent too, within the same deadline. */
  exec(command: string[], options: ExecOptions): Promise<InstanceExecResult>;
  readFile(path: string): Promise<Buffer>;
  writeFile(path: string, content: Buffer): Promise<void>;
  /** Flushes and blocks every mounted file system; returns how many. While frozen the agent answers nothing but thaw. */
  freeze(): Promise<number>;
  thaw(): Promise<void>;
  /** Discards what the mounted file systems do not use. */
  trim(timeoutMillis: number): Promise<void>;
  /** What the guest takes for the present, in milliseconds since 1970. */
  time(): Promise<number>;
  /** Sets the guest's clock to the present: one that was resumed believes that it is still the moment when its memory was saved. */
  setTime(): Promise<void>;
  /** Asks the guest's init to power off; the agent gives no answer to that. */
  shutdown(): Promise<void>;
}

export interface ExecOptions {
  environment?: Record<string, string> | undefined;
  timeoutMillis: number;
  signal?: AbortSignal | undefined;
}

const callMillis = 10_000;
const chunkBytes = 48 * 1024;
const handleSchema = z.int();
const startedSchema = z.object({ pid: z.int() });
const exitedSchema = z.object({
  exited: z.boolean(),
  exitcode: z.int().optional(),
  signal: z.int().optional(),
  "out-data": z.string().optional(),
  "err-data": z.string().optional(),
});
const readSchema = z.object({ "buf-b64": z.string(), eof: z.boolean() });

export function guestAgent(socketPath: string, guest: string): GuestAgent {
  const label = `guest agent of ${guest}`;
  const call = (command: string, args: Record<string, unknown> = {}, timeoutMillis = callMillis) =>
    oneAtATime(socketPath, () => callOnce({ socketPath, label, command, args, timeoutMillis }));

  return {
    ping: (timeoutMillis) =>
      call("guest-ping", {}, timeoutMillis).then(
        () => true,
        () => false,
      ),
    exec: (command, options) => execute(call, { label, command, options }),
    async readFile(path) {
      const handle = handleSchema.parse(await call("guest-file-open", { path, mode: "r" }));
      const chunks: Buffer[] = [];
      try {
        for (let eof = false; !eof;) {
          const read = readSchema.parse(await call("guest-file-read", { handle, count: chunkBytes }));
          chunks.push(Buffer.from(read["buf-b64"], "base64"));
          eof = read.eof;
        }
      } finally {
        await call("guest-file-close", { handle });
      }
      return Buffer.concat(chunks);
    },
    async writeFile(path, content) {
      const handle = handleSchema.parse(await call("guest-file-open", { path, mode: "w" }));
      try {
        for (let at = 0; at < content.length; at += chunkBytes) {
          await call("guest-file-write", { handle, "buf-b64": content.subarray(at, at + chunkBytes).toString("base64") });
        }
      } finally {
        await call("guest-file-close", { handle });
      }
    },
    freeze: async () => z.int().parse(await call("guest-fsfreeze-freeze")),
    trim: async (timeoutMillis) => void (await call("guest-fstrim", {}, timeoutMillis)),
    thaw: async () => void (await call("guest-fsfreeze-thaw")),
    // nanoseconds: more than a number holds exactly
    time: async () => z.number().parse(await call("guest-get-time")) / 1_000_000,
    setTime: () => setTime(call, label),
    shutdown: async () => void (await call("guest-shutdown", { mode: "powerdown" }, 2_000).catch(ignoreSilence)),
  };
}

type Call = (command: string, args?: Record<string, unknown>, timeoutMillis?: number) => Promise<unknown>;

/** By `date` where there is no hwclock, as the guest agent then refuses. That one knows whole seconds only, and sets nothing back. */
async function setTime(call: Call, label: string): Promise<void> {
  const set = await call("guest-set-time", { time: Date.now() * 1_000_000 }).then(
    () => true,
    () => false,
  );
  if (set) return;
  const next = Math.ceil(Date.now() / 1000);
  await delay(next * 1000 - Date.now());
  const script = `[ "$(date +%s)" -ge ${String(next)} ] || date -s @${String(next)}`;
  await execute(call, { label, command: ["/bin/sh", "-c", script], options: { timeoutMillis: callMillis } });
}

async function execute(call: Call, what: { label: string; command: string[]; options: ExecOptions }): Promise<InstanceExecResult> {
  const { timeoutMillis, environment, signal } = what.options;
  const deadline = Date.now() + timeoutMillis;
  await answered(call, { ...what, deadline });
  const [path, ...arg] = what.command;
  const env = Object.entries({ PATH: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", HOME: "/root", ...environment }).map(
    ([name, value]) => `${name}=${value}`,
  );
  const { pid } = startedSchema.parse(await call("guest-exec", { path, arg, env, "capture-output": true }));
  for (let pause = 5; ; pause = Math.min(pause * 2, 250)) {
    const status = exitedSchema.parse(await call("guest-exec-status", { pid }));
    if (status.exited) {
      return {
        stdout: Buffer.from(status["out-data"] ?? "", "base64").toString("utf8"),
        stderr: Buffer.from(status["err-data"] ?? "", "base64").toString("utf8"),
        exitCode: status.exitcode ?? 128 + (status.signal ?? 0),
      };
    }
    if (signal?.aborted === true || Date.now() > deadline) {
      await call("guest-exec", { path: "/bin/sh", arg: ["-c", `kill -9 ${String(pid)}`] });
      throw signal?.aborted === true
        ? new CloudletError("ABORTED", `the command in ${what.label} was cancelled`)
        : new CloudletError("TIMEOUT", `the command in ${what.label} did not end within ${String(timeoutMillis)} ms`);
    }
    await delay(pause);
  }
}

/** Right after its start a guest has no agent yet; QEMU keeps the channel's bytes back until it has. */
async function answered(call: Call, what: { label: string; deadline: number; options: ExecOptions }): Promise<void> {
  for (;;) {
    what.options.signal?.throwIfAborted();
    try {
      await call("guest-ping", {}, 1_000);
      return;
    } catch (error) {
      if (Date.now() > what.deadline)
        throw new CloudletError("UNREACHABLE", `${what.label} did not answer; does the base run qemu-guest-agent?`, { cause: error });
      await delay(100);
    }
  }
}

function ignoreSilence(error: unknown): void {
  if (!(error instanceof CloudletError) || error.code !== "UNREACHABLE") throw error;
}

const queues = new Map<string, Promise<unknown>>();

async function oneAtATime<T>(key: string, work: () => Promise<T>): Promise<T> {
  const before = queues.get(key) ?? Promise.resolve();
  const mine = before.then(work, work);
  const settled = mine.catch(() => undefined);
  queues.set(key, settled);
  try {
    return await mine;
  } finally {
    if (queues.get(key) === settled) queues.delete(key);
  }
}

const answerSchema = z.object({ return: z.unknown() });
const failureSchema = z.object({ error: z.object({ desc: z.string() }) });

async function callOnce(request: {
  socketPath: string;
  label: string;
  command: string;
  args: Record<string, unknown>;
  timeoutMillis: number;
}): Promise<unknown> {
  const { label, command } = request;
  const values: unknown[] = [];
  let wake: () => void = () => undefined;
  const lines = await connectJsonLines(request.socketPath, {
    label,
    sentinel: 0xff,
    onValue: (value) => {
      values.push(value);
      wake();
    },
  });
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(
      () => reject(new CloudletError("UNREACHABLE", `${label} did not answer ${command} within ${String(request.timeoutMillis)} ms`)),
      request.timeoutMillis,
    );
    void lines.ended.then(reject);
  });
  late.catch(() => undefined);
  const next = async (): Promise<unknown> => {
    while (values.length === 0) await Promise.race([new Promise<void>((resolve) => (wake = resolve)), late]);
    return values.shift();
  };
  try {
    // the sentinel clears half a command that somebody may have left in the channel
    const id = randomInt(1, 2 ** 31);
    lines.sendRaw(Buffer.from([0xff]));
    lines.send({ execute: "guest-sync-delimited", arguments: { id } });
    for (;;) {
      const value = answerSchema.safeParse(await next());
      if (value.success && value.data.return === id) break;
    }
    lines.send({ execute: command, arguments: request.args });
    const value = await next();
    const failure = failureSchema.safeParse(value);
    if (failure.success) throw new CloudletError("FAILED", `${label} refused ${command}: ${failure.data.error.desc}`);
    return answerSchema.parse(value).return;
  } finally {
    clearTimeout(timer);
    lines.close();
  }
}
