import { EventEmitter, once } from "node:events";
import { mkdirSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError, codeOf, errorCodes } from "../core/errors.ts";
import { Journal, readJournal, settleJournals } from "./journal.ts";
import type { KeyedLock } from "./keyedLock.ts";
import type { JobEvent } from "./jobProtocol.ts";

/** What a job function may use. */
export interface JobContext {
  signal: AbortSignal;
  /** Writes the step to the journal; it is durable when this returns. */
  step(name: string): void;
  /** One line that says what is being done right now. */
  status(text: string): void;
}

const cancelled = "asked for";

/** Whether somebody has asked for a job's end, and not the end of the agent has brought it. */
export function wasCancelled(signal: AbortSignal): boolean {
  return signal.aborted && signal.reason instanceof CloudletError && signal.reason.cause === cancelled;
}

export interface JobWork {
  verb: string;
  /** What the job touches: jobs that share a key run one after the other. */
  keys: string[];
  /** Done before it waits for its turn. */
  first?(context: JobContext): Promise<void>;
  perform(context: JobContext): Promise<unknown>;
}

export interface JobsOptions {
  directory: string;
  lock: KeyedLock;
  /** Called when a step is durable; fault tests end the process here. */
  onStep?: (name: string) => void;
}

export const jobIdPattern = /^[a-zA-Z0-9][a-zA-Z0-9._-]{0,199}$/;

const keptInMemory = 200;
// shorter than the request waits that asks for the job again
const cancelMillis = 50_000;

type Body = JobEvent extends infer E ? (E extends JobEvent ? Omit<E, "seq" | "at"> : never) : never;

interface Job {
  events: JobEvent[];
  changed: EventEmitter;
  abort: AbortController;
  ended: boolean;
  finished: Promise<void>;
}

/** Long work with an id: it goes on when whoever asked is gone, and asking again attaches to it. */
export class Jobs {
  readonly #options: JobsOptions;
  readonly #jobs = new Map<string, Job>();

  constructor(options: JobsOptions) {
    this.#options = options;
    mkdirSync(options.directory, { recursive: true, mode: 0o700 });
    settleJournals(options.directory, new Date());
  }

  running(): string[] {
    return [...this.#jobs].filter(([, job]) => !job.ended).map(([id]) => id);
  }

  /** Returns once no job of this id is on its way to a cancelled end, which whoever asks again would get for an answer. */
  async endOfCancelled(id: string): Promise<void> {
    const late = sleep(cancelMillis, "late", { ref: false });
    for (let job = this.#jobs.get(id); job !== undefined && !job.ended && wasCancelled(job.abort.signal); job = this.#jobs.get(id)) {
      if ((await Promise.race([job.finished, late])) === "late")
        throw new CloudletError("BUSY", `job ${id} was cancelled and has not ended since`);
    }
  }

  /** Attaches to a running job of this id, or starts it. */
  start(id: string, work: JobWork): { attached: boolean } {
    if (!jobIdPattern.test(id)) throw new CloudletError("INVALID", `job id "${id}" has characters that are not allowed`);
    const known = this.#jobs.get(id);
    if (known !== undefined && !known.ended) return { attached: true };
    const job: Job = {
      events: [],
      changed: new EventEmitter().setMaxListeners(0),
      abort: new AbortController(),
      ended: false,
      finished: Promise.resolve(),
    };
    // a job that is started again becomes the newest
    this.#jobs.delete(id);
    this.#jobs.set(id, job);
    const journal = new Journal(this.#options.directory, id);
    job.finished = this.#perform(job, journal, work).finally(() => {
      journal.close();
      this.#forgetOld();
    });
    return { attached: false };
  }

  /** The events of a job from `from` on, until it has ended. */
  async *events(id: string, from: number, signal: AbortSignal): AsyncGenerator<JobEvent> {
    const job = this.#jobs.get(id);
    if (job === undefined) {
      yield* this.#recorded(id).filter((event) => event.seq >= from);
      return;
    }
    for (let next = 0; ;) {
      for (; next < job.events.length; next++) {
        const event = job.events[next];
        if (event !== undefined && event.seq >= from) yield event;
      }
      if (job.ended) return;
      await once(job.changed, "event", { signal });
    }
  }

  /** Asks a job to end; one that has ended already, or never was, is fine. */
  cancel(id: string): void {
    this.#jobs.get(id)?.abort.abort(new CloudletError("ABORTED", `job ${id} was cancelled`, { cause: cancelled }));
  }

  /** Ends all jobs, as the agent itself ends. */
  async close(timeoutMillis: number): Promise<void> {
    const jobs = [...this.#jobs.values()].filter((job) => !job.ended);
    for (const job of jobs) job.abort.abort(new CloudletError("ABORTED", "the agent is being stopped"));
    const deadline = new AbortController();
    const timer = setTimeout(() => {
      deadline.abort();
    }, timeoutMillis);
    await Promise.race([Promise.all(jobs.map((job) => job.finished)), once(deadline.signal, "abort")]);
    clearTimeout(timer);
  }

  async #perform(job: Job, journal: Journal, work: JobWork): Promise<void> {
    const record = (body: Body): void => {
      const event: JobEvent = { ...body, seq: job.events.length, at: new Date().toISOString() };
      journal.append(event);
      job.events.push(event);
      job.ended = event.type === "done" || event.type === "failed";
      job.changed.emit("event");
    };
    const context: JobContext = {
      signal: job.abort.signal,
      step: (name) => {
        record({ type: "step", name });
        this.#options.onStep?.(name);
      },
      status: (text) => {
        record({ type: "progress", text });
      },
    };
    record({ type: "begun", verb: work.verb });
    try {
      await work.first?.(context);
      const held = work.keys.find((key) => this.#options.lock.isHeld(key));
      if (held !== undefined) context.status(`waiting for another operation on ${held}`);
      const result = await this.#options.lock.run(work.keys, () => work.perform(context), job.abort.signal);
      record({ type: "done", result });
    } catch (error) {
      const ended = job.abort.signal.aborted && codeOf(error) === "ABORTED";
      record({ type: "failed", error: toJobError(ended ? job.abort.signal.reason : error) });
    }
  }

  #recorded(id: string): JobEvent[] {
    const events = jobIdPattern.test(id) ? readJournal(this.#options.directory, id) : undefined;
    // the result of a job that ended before the agent restarted is gone: running it again yields it
    if (events === undefined || events.at(-1)?.type === "done") throw new CloudletError("NOT_FOUND", `there is no job ${id}`);
    return events;
  }

  #forgetOld(): void {
    for (const [id, job] of this.#jobs) {
      if (this.#jobs.size <= keptInMemory) return;
      if (job.ended) this.#jobs.delete(id);
    }
  }
}

export function toJobError(error: unknown): { code: string; message: string; fix: string } {
  const code = codeOf(error);
  const message = error instanceof Error ? error.message : String(error);
  const fix = error instanceof Error && "fix" in error && typeof error.fix === "string" ? error.fix : errorCodes[code].fix;
  return { code, message, fix };
}
