import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import { connectJsonLines } from "./jsonLines.ts";

/** Milliseconds each command may take; a silent QEMU is an error with a name, never a hang. */
export const qmpDeadlines: Readonly<Record<string, number>> = {
  greeting: 5_000,
  qmp_capabilities: 3_000,
  "query-status": 3_000,
  "query-migrate": 5_000,
  "query-jobs": 5_000,
  // waits for the pages that the guest puts into its balloon: each is a hole punched in a file
  "query-balloon": 60_000,
  // flush of the guest's disks
  stop: 30_000,
  quit: 10_000,
  default: 10_000,
};

export interface QmpEvent {
  event: string;
  data: Record<string, unknown>;
}

/** A QMP session: commands in, answers and events out. */
export interface Qmp {
  execute(command: string, args?: Record<string, unknown>): Promise<unknown>;
  /** Events since the session began, oldest first. */
  readonly events: readonly QmpEvent[];
  close(): void;
}

export interface QmpOptions {
  /** Name of the guest, for messages. */
  guest: string;
  deadlines?: Readonly<Record<string, number>>;
}

export async function connectQmp(socketPath: string, options: QmpOptions): Promise<Qmp> {
  const label = `QMP of guest ${options.guest}`;
  const deadlines = { ...qmpDeadlines, ...options.deadlines };
  const pending = new Map<string, Waiter>();
  const greeting = new Deferred<unknown>();
  const events: QmpEvent[] = [];
  let nextId = 1;

  const lines = await connectJsonLines(socketPath, { label, onValue: (value) => dispatch(value, { greeting, pending, events }) });
  void lines.ended.then((reason) => {
    greeting.reject(reason);
    for (const waiter of pending.values()) waiter.answer.reject(reason);
    pending.clear();
  });
  const execute = async (command: string, args?: Record<string, unknown>): Promise<unknown> => {
    const id = `c${String(nextId++)}`;
    const answer = new Deferred<unknown>();
    pending.set(id, { command, guest: options.guest, answer });
    lines.send({ execute: command, id, ...(args === undefined ? {} : { arguments: args }) });
    void lines.ended.then((reason) => answer.reject(reason));
    return withDeadline(answer.promise, deadlines[command] ?? deadlines["default"] ?? 10_000, `${label} did not answer ${command}`).finally(
      () => pending.delete(id),
    );
  };
  try {
    await withDeadline(greeting.promise, deadlines["greeting"] ?? 5_000, `${label} did not greet`);
    await execute("qmp_capabilities");
  } catch (error) {
    lines.close();
    throw error;
  }
  return { execute, events, close: () => lines.close() };
}

interface Waiter {
  command: string;
  guest: string;
  answer: Deferred<unknown>;
}

const greetingSchema = z.object({ QMP: z.object({ version: z.unknown() }) });
const eventSchema = z.object({ event: z.string(), data: z.record(z.string(), z.unknown()).default({}) });
const returnSchema = z.object({ return: z.unknown(), id: z.string() }).refine((value) => "return" in value);
const errorSchema = z.object({ error: z.object({ class: z.string(), desc: z.string() }), id: z.string().optional() });

function dispatch(value: unknown, session: { greeting: Deferred<unknown>; pending: Map<string, Waiter>; events: QmpEvent[] }): void {
  const event = eventSchema.safeParse(value);
  if (event.success) {
    session.events.push(event.data);
    return;
  }
  if (greetingSchema.safeParse(value).success) {
    session.greeting.resolve(value);
    return;
  }
  const failure = errorSchema.safeParse(value);
  if (failure.success) {
    const waiter = session.pending.get(failure.data.id ?? "");
    waiter?.answer.reject(new QmpError(waiter, failure.data.error));
    return;
  }
  const result = returnSchema.safeParse(value);
  if (result.success) session.pending.get(result.data.id)?.answer.resolve(result.data.return);
}

/** QEMU's own refusal; `qmpClass` is QEMU's error class. */
export class QmpError extends CloudletError {
  readonly qmpClass: string;
  constructor(waiter: { command: string; guest: string }, error: { class: string; desc: string }) {
    super("FAILED", `QEMU refused ${waiter.command} for guest ${waiter.guest}: ${error.desc}`);
    this.qmpClass = error.class;
  }
}

class Deferred<T> {
  readonly promise: Promise<T>;
  resolve!: (value: T) => void;
  reject!: (reason: unknown) => void;
  constructor() {
    this.promise = new Promise<T>((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    // nobody may be waiting when the connection ends
    this.promise.catch(() => undefined);
  }
}

async function withDeadline<T>(promise: Promise<T>, millis: number, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new CloudletError("UNREACHABLE", `${what} within ${String(millis)} ms`)), millis);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
