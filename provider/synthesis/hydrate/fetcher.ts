import { setTimeout as delay } from "node:timers/promises";
import type { Offer } from "../../agent/protocol.ts";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Chunk } from "../manifest.ts";
import { Assembly, type Whole } from "./assembly.ts";
import { Pace } from "./pace.ts";
import { RangeConnection } from "./rangeConnection.ts";

/** What takes the chunks. `accept` verifies: INTEGRITY where a chunk is not what it should be. */
export interface Sink {
  missing(): number[];
  accept(chunk: number, compressed: Buffer): Promise<void>;
}

export interface FetchOptions {
  pack: { digest: string; chunks: readonly Chunk[]; touched: number };
  sink: Sink;
  /** Asked for before each attempt: they may change meanwhile. */
  offers(): readonly Offer[];
  /** A chunk is here. */
  arrived(chunk: number): void;
  bytesReceived(count: number): void;
  /** Why nothing comes; undefined = something does. */
  trouble(error: CloudletError | undefined): void;
}

/** Whole chunks that are being verified and written; with more of them only what is urgent is asked for. */
const backlogLimit = 6 * 1024 * 1024;
/** Chunks that nobody waits for are verified and written together, since each time costs a process. */
const holdMillis = 1_000;
const holdBytes = 2 * 1024 * 1024;
/** Silence is said aloud after the first, and ends the connection after the second. */
const silentMillis = 3_000;
const deadMillis = 10_000;
const firstPauseMillis = 250;
const longestPauseMillis = 5_000;

/** Brings the missing chunks of a pack from whoever offers it, in the order of the pack behind those that are urgent, and does not give up. */
export class Fetcher {
  readonly #options: FetchOptions;
  readonly #assembly: Assembly;
  readonly #missing: Set<number>;
  readonly #held: (Whole & { from: string })[] = [];
  #release: NodeJS.Timeout | undefined;
  #backlog = 0;
  #lastOffer: string | undefined;
  #pump: () => void = () => undefined;
  #fail: (error: CloudletError) => void = () => undefined;
  #done: () => void = () => undefined;

  constructor(options: FetchOptions) {
    this.#options = options;
    this.#missing = new Set(options.sink.missing());
    this.#assembly = new Assembly(options.pack.chunks, this.#missing);
  }

  /** Something waits for this chunk. */
  urge(chunk: number): void {
    this.#assembly.urge(chunk);
    if (this.#held.some((held) => held.chunk === chunk)) this.#acceptHeld();
    this.#pump();
  }

  /** Returns when every chunk is here. */
  async run(signal: AbortSignal): Promise<void> {
    let pause = firstPauseMillis;
    while (this.#missing.size > 0) {
      const before = this.#missing.size;
      const failures: CloudletError[] = [];
      for (const offer of this.#options.offers()) {
        signal.throwIfAborted();
        const failure = await this.#takeFrom(offer, signal);
        if (failure === undefined) return;
        failures.push(failure);
      }
      this.#options.trouble(worstOf(failures));
      pause = this.#missing.size < before ? firstPauseMillis : Math.min(longestPauseMillis, pause * 2);
      await delay(pause, undefined, { signal });
    }
  }

  /** undefined = nothing is missing any more. */
  async #takeFrom(offer: Offer, signal: AbortSignal): Promise<CloudletError | undefined> {
    this.#assembly.lost(this.#lastOffer === offer.certificate);
    this.#lastOffer = offer.certificate;
    const ending = new AbortController();
    try {
      return await new Promise<undefined>((resolve, reject) => {
        signal.addEventListener("abort", () => reject(new CloudletError("ABORTED", "the transfer was ended")), { signal: ending.signal });
        this.#done = () => resolve(undefined);
        this.#fail = reject;
        this.#connect(offer, ending.signal).catch(reject);
      });
    } catch (error) {
      signal.throwIfAborted();
      return error instanceof CloudletError ? error : new CloudletError(codeOf(error), `${offer.node}: ${String(error)}`, { cause: error });
    } finally {
      this.#pump = () => undefined;
      ending.abort();
      this.#acceptHeld();
    }
  }

  async #connect(offer: Offer, ended: AbortSignal): Promise<void> {
    const pace = new Pace();
    let heardAt = Date.now();
    const connection = await RangeConnection.dial(offer, this.#options.pack.digest, {
      received: (offset, bytes) => {
        heardAt = Date.now();
        pace.received(bytes.length, heardAt);
        this.#options.bytesReceived(bytes.length);
        this.#options.trouble(undefined);
        for (const whole of this.#assembly.received(offset, bytes)) this.#take({ ...whole, from: offer.node });
        this.#pump();
      },
      lost: (error) => this.#fail(error),
    });
    if (ended.aborted) return connection.close();
    const watch = setInterval(() => this.#watch(offer, pace.inFlight === 0 ? 0 : Date.now() - heardAt), 500);
    ended.addEventListener("abort", () => {
      clearInterval(watch);
      connection.close();
    });
    this.#pump = () => {
      for (let bytes = pace.next(); bytes > 0; bytes = pace.next()) {
        if (this.#backlog > backlogLimit && !this.#assembly.isUrgent) return;
        const range = this.#assembly.next(bytes);
        if (range === undefined) return;
        if (pace.inFlight === 0) heardAt = Date.now();
        pace.asked(range.bytes, Date.now());
        connection.request(range);
      }
    };
    this.#pump();
  }

  #watch(offer: Offer, silence: number): void {
    if (silence < silentMillis) return;
    const error = new CloudletError("UNREACHABLE", `${offer.node} has sent nothing for ${String(Math.round(silence / 1000))} s`);
    if (silence < deadMillis) this.#options.trouble(error);
    else this.#fail(error);
  }

  #take(whole: Whole & { from: string }): void {
    this.#backlog += whole.bytes.length;
    if (whole.urgent || whole.chunk < this.#options.pack.touched) return void this.#accept(whole);
    this.#held.push(whole);
    this.#release ??= setTimeout(() => this.#acceptHeld(), holdMillis);
    const heldBytes = this.#held.reduce((sum, { bytes }) => sum + bytes.length, 0);
    if (this.#assembly.isDone || heldBytes >= holdBytes) this.#acceptHeld();
  }

  #acceptHeld(): void {
    clearTimeout(this.#release);
    this.#release = undefined;
    for (const whole of this.#held.splice(0)) void this.#accept(whole);
  }

  async #accept({ chunk, bytes, from }: Whole & { from: string }): Promise<void> {
    try {
      await this.#options.sink.accept(chunk, bytes);
      this.#missing.delete(chunk);
      this.#options.arrived(chunk);
    } catch (error) {
      this.#assembly.again(chunk);
      this.#fail(notAccepted(chunk, from, error));
    } finally {
      this.#backlog -= bytes.length;
    }
    if (this.#missing.size === 0) this.#done();
    this.#pump();
  }
}

function notAccepted(chunk: number, from: string, error: unknown): CloudletError {
  const text = error instanceof Error ? error.message : String(error);
  if (codeOf(error) === "INTEGRITY")
    return new CloudletError("INTEGRITY", `${from} sent something else than chunk ${String(chunk)} of the pack: ${text}`, { cause: error });
  return new CloudletError("FAILED", `chunk ${String(chunk)} of the pack cannot be kept: ${text}`, { cause: error });
}

/** An offer that may come back counts more than those that never will. */
function worstOf(failures: CloudletError[]): CloudletError {
  const passing = failures.find(({ code }) => code === "UNREACHABLE");
  return passing ?? failures[0] ?? new CloudletError("UNREACHABLE", "no node offers what is missing");
}
