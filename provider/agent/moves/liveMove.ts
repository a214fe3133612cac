import { createHash, type Hash } from "node:crypto";
import { cpus } from "node:os";
import { z } from "zod";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Live, LiveDeparture, LiveRound } from "../../hypervisors/types.ts";
import { defaultBudget, type Budget, type Decision, type Round } from "../handoffProtocol.ts";
import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { Services } from "../services.ts";
import type { MoveChannel } from "./channel.ts";
import { decide, type MeasuredRound } from "./controller.ts";
import type { Departure } from "./files.ts";
import { commonImages } from "./liveImages.ts";
import { compressRound } from "./roundCompression.ts";

const empty = z.object({});
/** While the guest stands still, a link that is silent for this long is as good as cut. */
const pausedSilenceMillis = 10_000;
const firstLevel = 3;
/** What a pause takes besides the sending, before the first one was measured: loading, two records on disk each, and the start. */
const usualPauseMillis = 250;

interface Way {
  channel: MoveChannel;
  context: JobContext;
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
  const refusal = await announce(services, { opened, live }, way);
  if (refusal !== undefined) return refusal;
  const move = new LiveMove(services, { opened, live }, way);
  try {
    return await move.run();
  } catch (error) {
    await move.giveUp();
    throw error;
  }
}

async function announce(
  services: Services,
  { opened, live }: { opened: Opened; live: Live },
  { channel, context }: Way,
): Promise<NotLive | undefined> {
  const shape = await live.shape(opened.guest);
  if ("impossible" in shape) return { notLive: shape.impossible };
  const volumes: number[] = [];
  for (const { id } of opened.guest.volumes) volumes.push((await services.volumes.read(id))?.spec.sizeMib ?? 0);
  try {
    const body = { shape: shape.shape, volumes };
    await channel.patiently(empty, { method: "POST", path: "/v1/live", body, signal: context.signal });
    return undefined;
  } catch (error) {
    // an older agent knows nothing of it, and a node that cannot run the guest on can still boot it
    if (!["UNSUPPORTED", "NOT_FOUND"].includes(codeOf(error))) throw error;
    return { notLive: error instanceof Error ? error.message : String(error) };
  }
}

class LiveMove {
  readonly #services: Services;
  readonly #parts: { opened: Opened; live: Live };
  readonly #way: Way;
  readonly #hash: Hash = createHash("sha256");
  readonly #rounds: MeasuredRound[] = [];
  readonly #beganAt = Date.now();
  readonly #budget: Budget;
  #departure: LiveDeparture | undefined;
  #throttle = 0;
  #rawBytes = 0;

  constructor(services: Services, parts: { opened: Opened; live: Live }, way: Way) {
    this.#services = services;
    this.#parts = parts;
    this.#way = way;
    this.#budget = defaultBudget;
  }

  async run(): Promise<LiveResult> {
    const { opened, live } = this.#parts;
    const { context } = this.#way;
    const images = commonImages(this.#services, opened.record, opened.guest);
    const departure = await live.depart(opened.guest, images, context);
    this.#departure = departure;
    let decision: Decision = { action: "round", level: firstLevel, throttlePercent: 0, reason: "" };
    while (decision.action === "round" || decision.action === "throttle") {
      await this.#slowDown(departure, decision.throttlePercent);
      decision = await this.#round(departure, decision.level);
    }
    if (decision.action === "abort")
      throw new CloudletError("REFUSED", `${opened.record.spec.id} was not moved: ${decision.reason}`, {
        fix: "allow more with handoff, or move it when it is less busy",
      });
    return this.#last(departure, decision);
  }

  /** The guest goes on here, and nothing of the attempt is left on either node. */
  async giveUp(): Promise<void> {
    const { opened, live } = this.#parts;
    await this.#departure?.close().catch(() => undefined);
    // the application first: the target may be out of reach
    await live.stay(opened.guest);
    await this.#way.channel.json(empty, { method: "DELETE", path: "/v1/live" }).catch(() => undefined);
  }

  async #round(departure: LiveDeparture, level: number): Promise<Decision> {
    const { opened } = this.#parts;
    const { context } = this.#way;
    const { id } = opened.record.spec;
    const number = this.#rounds.length;
    context.status(`round ${number + 1} of ${id}: sending ${number === 0 ? "all that differs" : "what has changed"}`);
    const busy = processorTimes();
    const { round, compressMillis } = await this.#send(departure.round(context.signal), level);
    const idleProcessors = idleSince(busy);
    const remaining = await departure.remaining(context.signal);
    this.#rounds.push({ ...round, compressMillis, dirtyBytes: remaining.memoryBytes + remaining.diskBytes });
    await this.#services.handoffs.note(id, { type: "round", round });
    const decision = decide(this.#budget, {
      elapsedMillis: Date.now() - this.#beganAt,
      rounds: this.#rounds,
      remaining,
      idleProcessors,
      throttlePercent: this.#throttle,
      pauseMillis: usualPauseMillis,
    });
    await this.#services.handoffs.note(id, { type: "decided", decision });
    context.status(
      `round ${number + 1} of ${id}: ${(round.bytes / 1e6).toFixed(1)} MB in ${(round.millis / 1000).toFixed(1)} s; ${decision.reason}`,
    );
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
    const { round } = await this.#send(records, decision.level, pausedSilenceMillis);
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
      bytesTotal: Math.max(channel.bytesSent, this.#rawBytes),
      stoppedAt,
      rounds: [...this.#rounds.map(withoutMeasures), round],
      ...(totalMillis !== undefined && downtimeMillis !== undefined && { predicted: { totalMillis, downtimeMillis } }),
    };
  }

  /** Returns once all of it is in place on the target. */
  async #send(round: LiveRound, level: number, silenceMillis?: number): Promise<{ round: Round; compressMillis: number }> {
    const { context, channel } = this.#way;
    const [begun, before] = [Date.now(), channel.bytesSent];
    const number = this.#sent++;
    const compressed = compressRound(this.#hashed(round.records), level);
    await channel.stream(`/v1/rounds/${number}`, compressed.stream, {
      signal: context.signal,
      ...(silenceMillis !== undefined && { timeoutMillis: silenceMillis }),
    });
    const { pages, blocks, rawBytes } = round.stats();
    this.#rawBytes += rawBytes;
    const measured = { pages, blocks, rawBytes, bytes: channel.bytesSent - before, millis: Date.now() - begun, level };
    return { round: { ...measured, throttlePercent: this.#throttle }, compressMillis: compressed.processorMillis() };
  }

  #sent = 0;

  async *#hashed(records: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const chunk of records) {
      this.#hash.update(chunk);
      yield chunk;
    }
  }

  async #slowDown(departure: LiveDeparture, percent: number): Promise<void> {
    if (percent === this.#throttle) return;
    await departure.throttle(percent);
    this.#throttle = percent;
  }
}

function withoutMeasures({ compressMillis: _, dirtyBytes: __, ...round }: MeasuredRound): Round {
  return round;
}

function processorTimes(): { idle: number; at: number } {
  return { idle: cpus().reduce((sum, { times }) => sum + times.idle, 0), at: Date.now() };
}

/** Processors that had nothing to do. */
function idleSince(before: { idle: number; at: number }): number {
  const now = processorTimes();
  return Math.max(0, (now.idle - before.idle) / Math.max(1, now.at - before.at));
}
