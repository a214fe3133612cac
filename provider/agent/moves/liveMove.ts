import { createHash, type Hash } from "node:crypto";
import { cpus } from "node:os";
import { setTimeout as sleep } from "node:timers/promises";
import { z } from "zod";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Live, LiveDeparture, LiveRound } from "../../hypervisors/types.ts";
import type { Budget, Decision, MoveReport, Round } from "../handoffProtocol.ts";
import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { Services } from "../services.ts";
import type { MoveChannel } from "./channel.ts";
import { decide, type MeasuredRound, type Measurements } from "./controller.ts";
import type { Departure } from "./files.ts";
import { hashed } from "./hashed.ts";
import { commonImages } from "./liveImages.ts";
import { progressText } from "./progress.ts";
import { compressRound } from "./roundCompression.ts";

const empty = z.object({});
const begunSchema = z.object({ has: z.base64().default("") });
/** While the guest stands still, a link that is silent for this long is as good as cut. */
const pausedSilenceMillis = 10_000;
const lookMillis = 1_000;
/** Whether the target hears that it may forget what has arrived; it would hold it until the next attempt. */
const forgetPauses = [500, 1_000, 2_000];
const firstLevel = 3;
/** What a pause takes besides the sending, where none was measured yet: loading, two records on disk each, and the start. */
const usualPauseMillis = 250;
const mostPauseMillis = 1_000;

interface Way {
  channel: MoveChannel;
  context: JobContext;
  budget: Budget;
  beganAt: number;
  /** The target's name, for messages. */
  node: string;
}

export type LiveResult = Required<Pick<Departure, "seal" | "bytesSent" | "bytesTotal" | "stoppedAt" | "rounds">> &
  Pick<Departure, "predicted">;

/** Why a guest that runs is moved while it is stopped instead. */
export interface NotLive {
  notLive: string;
}

/** Copies a running guest to the target: round by round while it runs, and the rest while it is paused. Afterwards it is sealed there and paused here. */
export async function moveLive(services: Services, opened: Opened, way: Way): Promise<LiveResult | NotLive> {
  const { live } = opened.driver;
  if (live === undefined) return { notLive: `hypervisors of kind ${opened.driver.kind} cannot` };
  const shape = await live.shape(opened.guest);
  if ("impossible" in shape) return { notLive: shape.impossible };
  // while the target makes ready, this side looks at what both have
  const targetHas = announce(services, { opened, shape: shape.shape }, way);
  targetHas.catch(() => undefined);
  const move = new LiveMove(services, { opened, live, targetHas }, way);
  try {
    return await move.run();
  } catch (error) {
    const refused = await targetHas.then(
      () => undefined,
      (failure: unknown) => failure,
    );
    await move.giveUp();
    // an older agent knows nothing of it, and a node that cannot run the guest on can still boot it
    if (["UNSUPPORTED", "NOT_FOUND"].includes(codeOf(refused)))
      return { notLive: refused instanceof Error ? refused.message : String(refused) };
    throw refused ?? error;
  }
}

/** Returns what the target has of it. */
async function announce(
  services: Services,
  { opened, shape }: { opened: Opened; shape: string },
  { channel, context }: Way,
): Promise<Buffer> {
  const volumes: number[] = [];
  for (const { id } of opened.guest.volumes) volumes.push((await services.volumes.read(id))?.spec.sizeMib ?? 0);
  const body = { shape, volumes };
  const { has } = await channel.patiently(begunSchema, { method: "POST", path: "/v1/live", body, signal: context.signal });
  return Buffer.from(has, "base64");
}

interface Parts {
  opened: Opened;
  live: Live;
  /** In the driver's own words. */
  targetHas: Promise<Buffer>;
}

class LiveMove {
  readonly #services: Services;
  readonly #parts: Parts;
  readonly #way: Way;
  readonly #hash: Hash = createHash("sha256");
  readonly #rounds: MeasuredRound[] = [];
  readonly #pauseMillis: number;
  #departure: LiveDeparture | undefined;
  #throttle = 0;
  #idleProcessors = 0;
  /** Rounds that were begun. */
  #sent = 0;
  /** Of the rounds that have ended, on the wire. */
  #bytes = 0;
  /** Uncompressed bytes that the next round sends at least. */
  #remaining = 0;
  /** Of all that was sent or only named. */
  #wholeBytes = 0;

  constructor(services: Services, parts: Parts, way: Way) {
    this.#services = services;
    this.#parts = parts;
    this.#way = way;
    this.#pauseMillis = pauseOf(parts.opened.record.lastMove);
  }

  async run(): Promise<LiveResult> {
    const { opened, live, targetHas } = this.#parts;
    const { context } = this.#way;
    const images = commonImages(this.#services, opened.record, opened.guest);
    const former = { path: await this.#services.formerCopies.pathOf(opened.record.spec.id), onTarget: targetHas };
    const departure = await live.depart(opened.guest, { images, former }, context);
    this.#departure = departure;
    let decision: Decision = { action: "round", level: firstLevel, throttlePercent: 0, reason: "" };
    while (decision.action === "round" || decision.action === "throttle") {
      await this.#slowDown(departure, decision.throttlePercent);
      decision = await this.#round(departure, decision.level);
    }
    if (decision.action === "abort") throw this.#refusal(decision.reason);
    return this.#last(departure, decision);
  }

  /** The guest goes on here, and nothing of the attempt is left on either node. */
  async giveUp(): Promise<void> {
    const { opened, live } = this.#parts;
    await this.#departure?.close().catch(() => undefined);
    // the application first: the target may be out of reach
    await live.stay(opened.guest);
    for (const pause of [0, ...forgetPauses]) {
      await sleep(pause);
      const gone = await this.#way.channel.json(empty, { method: "DELETE", path: "/v1/live" }).then(
        () => true,
        (error: unknown) => codeOf(error) !== "UNREACHABLE",
      );
      if (gone) return;
    }
  }

  async #round(departure: LiveDeparture, level: number): Promise<Decision> {
    const { opened } = this.#parts;
    const { context } = this.#way;
    const { id } = opened.record.spec;
    const number = this.#rounds.length;
    const measured = await this.#send((signal) => departure.round(signal), level);
    const remaining = await departure.remaining(context.signal);
    this.#remaining = remaining.memoryBytes + remaining.diskBytes;
    this.#rounds.push({ ...measured, dirtyBytes: this.#remaining });
    await this.#services.handoffs.note(id, { type: "round", round: withoutMeasures(measured) });
    const decision = this.#decide(remaining);
    await this.#services.handoffs.note(id, { type: "decided", decision });
    context.status(`${this.#progress(0, decision)}: ${decision.reason}`);
    context.step(`round${number + 1}`);
    return decision;
  }

  async #last(departure: LiveDeparture, decision: Decision): Promise<LiveResult> {
    const { context, channel } = this.#way;
    const { id } = this.#parts.opened.record.spec;
    context.status(`pausing ${id}`);
    let stoppedAt = Date.now();
    const records = departure.last(context.signal, () => {
      stoppedAt = Date.now();
      context.step("paused");
    });
    const round = withoutMeasures(await this.#send(() => records, decision.level, pausedSilenceMillis));
    const seal = this.#hash.digest("hex");
    await channel.patiently(empty, { method: "POST", path: "/v1/seal", body: { seal }, signal: context.signal });
    context.step("sealed");
    await departure.close();
    await this.#services.handoffs.note(id, { type: "paused" }, stoppedAt);
    await this.#services.handoffs.note(id, { type: "round", round });
    await this.#services.handoffs.note(id, { type: "sealed" });
    const { predictedTotalMillis: totalMillis, predictedDowntimeMillis: downtimeMillis } = decision;
    return {
      seal,
      bytesSent: channel.bytesSent,
      bytesTotal: Math.max(channel.bytesSent, this.#wholeBytes),
      stoppedAt,
      rounds: [...this.#rounds.map(withoutMeasures), round],
      ...(totalMillis !== undefined && downtimeMillis !== undefined && { predicted: { totalMillis, downtimeMillis } }),
    };
  }

  /** Returns once all of it is in place on the target; the time that a budget allows may run out before. */
  async #send(open: (signal: AbortSignal) => LiveRound, level: number, silenceMillis?: number): Promise<MeasuredRound> {
    const { context, channel } = this.#way;
    const ending = new AbortController();
    const cancel = (): void => ending.abort();
    context.signal.addEventListener("abort", cancel);
    if (context.signal.aborted) cancel();
    const round = open(ending.signal);
    const compressed = compressRound(hashed(round.records, this.#hash), level);
    const [begun, bytes, linkMillis, busy] = [Date.now(), channel.bytesSent, channel.linkMillis, processorTimes()];
    const measure = (): MeasuredRound => ({
      ...heldIn(round),
      bytes: channel.bytesSent - bytes,
      millis: Date.now() - begun,
      level,
      throttlePercent: this.#throttle,
      compressMillis: compressed.processorMillis(),
      linkMillis: Math.round(channel.linkMillis - linkMillis),
      dirtyBytes: 0,
    });
    let late: Decision | undefined;
    const timer = setInterval(() => {
      const current = measure();
      const left = Math.max(0, this.#remaining - current.rawBytes);
      const decision = this.#decide({ memoryBytes: left, diskBytes: 0 }, current);
      context.status(this.#progress(current.bytes, this.#rounds.length > 0 ? decision : undefined));
      if (decision.action !== "abort") return;
      late = decision;
      cancel();
    }, lookMillis);
    try {
      await channel.stream(`/v1/rounds/${this.#sent++}`, compressed.stream, {
        signal: ending.signal,
        ...(silenceMillis !== undefined && { timeoutMillis: silenceMillis }),
      });
    } catch (error) {
      throw late === undefined ? error : this.#refusal(late.reason);
    } finally {
      clearInterval(timer);
      context.signal.removeEventListener("abort", cancel);
    }
    this.#idleProcessors = idleSince(busy);
    const measured = measure();
    this.#wholeBytes += measured.rawBytes + round.stats().knownBytes;
    this.#bytes += measured.bytes;
    return measured;
  }

  #decide(remaining: Measurements["remaining"], current?: MeasuredRound): Decision {
    return decide(this.#way.budget, {
      elapsedMillis: Date.now() - this.#way.beganAt,
      rounds: this.#rounds,
      current,
      remaining,
      idleProcessors: this.#idleProcessors,
      throttlePercent: this.#throttle,
      pauseMillis: this.#pauseMillis,
    });
  }

  /** `bytes`: of the round that is under way. */
  #progress(bytes: number, expected: Decision | undefined): string {
    const [round, elapsedMillis] = [this.#sent, Date.now() - this.#way.beganAt];
    return progressText({
      id: this.#parts.opened.record.spec.id,
      to: this.#way.node,
      round,
      bytes: this.#bytes + bytes,
      elapsedMillis,
      expected,
    });
  }

  #refusal(reason: string): CloudletError {
    return new CloudletError("REFUSED", `${this.#parts.opened.record.spec.id} was not moved: ${reason}`, {
      fix: "allow more with `handoff`, or move it when it is less busy",
    });
  }

  async #slowDown(departure: LiveDeparture, percent: number): Promise<void> {
    if (percent === this.#throttle) return;
    await departure.throttle(percent);
    this.#throttle = percent;
  }
}

function heldIn(round: LiveRound): Pick<Round, "pages" | "blocks" | "rawBytes"> {
  const { pages, blocks, rawBytes } = round.stats();
  return { pages, blocks, rawBytes };
}

function withoutMeasures({ compressMillis: _, dirtyBytes: __, linkMillis: ___, ...round }: MeasuredRound): Round {
  return round;
}

/** Half of it as the last move of this very cloudlet has shown it: one that met a busy node must not stand for all. */
function pauseOf(last: MoveReport | undefined): number {
  const sending = last?.mode === "live" ? last.rounds?.at(-1)?.millis : undefined;
  if (last === undefined || sending === undefined) return usualPauseMillis;
  const measured = Math.min(mostPauseMillis, Math.max(0, last.downtimeMillis - sending));
  return (usualPauseMillis + measured) / 2;
}

function processorTimes(): { idle: number; at: number } {
  return { idle: cpus().reduce((sum, { times }) => sum + times.idle, 0), at: Date.now() };
}

/** Processors that had nothing to do. */
function idleSince(before: { idle: number; at: number }): number {
  const now = processorTimes();
  return Math.max(0, (now.idle - before.idle) / Math.max(1, now.at - before.at));
}
