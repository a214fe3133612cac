import type { Budget, Decision, Round } from "../handoffProtocol.ts";
import { chooseLevel, paceAt, type Pace, type Processor } from "./compressionLevels.ts";

/** A round as it was measured. */
export interface MeasuredRound extends Round {
  /** How long it waited for the link, and neither for the guest's memory nor for the compression. */
  linkMillis: number;
  /** Processor time that compressing took. */
  compressMillis: number;
  /** Uncompressed bytes of what the guest had changed when it ended; of one under way, has changed so far, or 0. */
  dirtyBytes: number;
}

/** What is known of a move when something is to be decided. */
export interface Measurements {
  /** Since the move began. */
  elapsedMillis: number;
  /** Those that have ended, in order. */
  rounds: readonly MeasuredRound[];
  /** The one that is under way, as far as it has come; absent between two rounds. */
  current?: MeasuredRound | undefined;
  /** Uncompressed bytes that the round under way has still to send, or the next one would. */
  remaining: { memoryBytes: number; diskBytes: number };
  /** What the link has carried before the first round, where that is known. */
  linkBytesPerSecond?: number | undefined;
  /** Processors of the node that were idle lately, 0 and more; the compression's own share does not count as idle. */
  idleProcessors: number;
  throttlePercent: number;
  /** What a pause takes besides the sending: device state, start and confirmation. */
  pauseMillis: number;
}

/** Rounds after which only a shrinking remainder, or a pause that is still too long, is a reason for another one. */
const usualRounds = 3;
/** However long the remainder goes on to shrink. */
const mostRounds = 30;
/** Another round must leave at most this part of what there was before it. */
const shrinking = 0.8;
/** And at most this part of the smallest one before, once some rounds have shown how the guest behaves. */
const shrunk = 0.95;
/** Once the pause fits, another round must shorten it by this part, and by this much. */
const worthwhile = { part: 0.25, millis: 50 };
/** A guest that is slowed down further than this would seem to stand still. */
const mostThrottle = 95;
const leastThrottleStep = 20;
/** A link that was never waited for is at least so much faster than what came. */
const unseenLink = 20;
/** What a round must have taken so that its speed says something about the rest of it. */
const tellingMillis = 3_000;

/**
 * What to do next in a move of a running guest: another round, the pause, slowing the guest down, or giving up. Nothing but
 * the budget and what was measured goes in, so that every decision can be repeated from a handoff's history.
 */
export function decide(budget: Budget, measured: Measurements): Decision {
  const bytes = measured.remaining.memoryBytes + measured.remaining.diskBytes;
  const processor = processorOf(measured);
  const pace = paceOf(measured);
  if (pace === undefined) return toDecision({ action: "round", reason: "nothing was measured yet" }, { measured, level: 3 });
  const level = chooseLevel(pace, processor);
  const view: View = { budget, measured, growth: growthOf(measured), bytesPerMillis: paceAt(level, pace, processor) };
  const now: Standing = { bytes, rounds: measured.rounds.length, elapsedMillis: measured.elapsedMillis, least: leastOf(measured) };
  if (measured.current !== undefined) return during(view, now, level);
  const choice = choose(view, now);
  return toDecision(choice, { measured, level, foreseen: foresee(view, now) });
}

/** Where a move stands, or would stand later. */
interface Standing {
  bytes: number;
  rounds: number;
  elapsedMillis: number;
  /** The smallest remainder before. */
  least: number;
}

interface View {
  budget: Budget;
  measured: Measurements;
  growth: Growth;
  bytesPerMillis: number;
}

interface Choice {
  action: Decision["action"];
  reason: string;
  throttlePercent?: number;
}

/** What the guest changes in a time: `bytes` × (`millis` of it / `millis`) ^ `exponent`; 1 = ever new pages, 0 = the same ones again and again. */
interface Growth {
  bytes: number;
  millis: number;
  exponent: number;
}

function choose(view: View, now: Standing): Choice {
  const { budget } = view;
  if (now.rounds === 0) return { action: "round", reason: "everything that differs is sent while the guest runs" };
  const [pause, after] = [pauseAt(view, now), standingAfter(view, now)];
  const later = pauseAt(view, after);
  const better = `another round makes the pause ${inMillis(later)} instead of ${inMillis(pause)}`;
  const inTime = after.elapsedMillis + later <= budget.maxTotalSeconds * 1000;
  if (pause <= budget.maxDowntimeMillis) {
    const gain = pause - later;
    const pays = gain >= worthwhile.millis && gain >= worthwhile.part * pause;
    if (now.rounds < usualRounds && pays && inTime) return { action: "round", reason: better };
    const late = now.elapsedMillis + pause > budget.maxTotalSeconds * 1000;
    if (late && budget.onExceeded === "abort") return { action: "abort", reason: tooLong(view, now.elapsedMillis + pause) };
    return { action: "stop", reason: `the pause takes ${inMillis(pause)}, and ${inMillis(budget.maxDowntimeMillis)} are allowed` };
  }
  const settled = now.rounds >= usualRounds && now.bytes > shrunk * now.least;
  const shrinks = after.bytes <= shrinking * now.bytes && !settled && now.rounds < mostRounds;
  if (shrinks && inTime) return { action: "round", reason: better };
  const why = shrinks ? tooLong(view, after.elapsedMillis + later) : tooBusy(view, now);
  return exceeded(view, now, { shrinks, why });
}

/** Rounds alone do not keep the budget. */
function exceeded(view: View, now: Standing, { shrinks, why }: { shrinks: boolean; why: string }): Choice {
  const { onExceeded, maxDowntimeMillis } = view.budget;
  const { throttlePercent, pauseMillis } = view.measured;
  if (onExceeded === "abort") return { action: "abort", reason: why };
  const helps = pauseMillis < maxDowntimeMillis && now.rounds < mostRounds && throttlePercent < mostThrottle;
  if (onExceeded === "throttle" && helps) {
    const percent = throttleFor(view, now);
    return { action: "throttle", throttlePercent: percent, reason: `${why}; it is slowed down by ${percent} %` };
  }
  // what is left must be sent in any case, so sending it before the pause costs next to nothing
  return { action: shrinks ? "round" : "stop", reason: `${why}; the move goes on all the same` };
}

function tooLong({ budget }: View, totalMillis: number): string {
  return `the move takes ${inSeconds(totalMillis)}, and ${budget.maxTotalSeconds} s are allowed`;
}

function tooBusy(view: View, now: Standing): string {
  const most = inMillis(view.budget.maxDowntimeMillis);
  return `the pause takes ${inMillis(pauseAt(view, now))} where ${most} are allowed, and the guest changes memory as fast as it is sent`;
}

/** How much of its speed the guest must lose for the next pause to fit, from what it loses already. */
function throttleFor({ budget, measured, bytesPerMillis, growth }: View, now: Standing): number {
  const allowed = Math.max(0, budget.maxDowntimeMillis - measured.pauseMillis) * bytesPerMillis;
  const changed = changedIn(growth, now.bytes / bytesPerMillis);
  const running = 1 - measured.throttlePercent / 100;
  const wanted = 100 * (1 - running * Math.min(1, allowed / Math.max(1, changed)));
  return Math.min(mostThrottle, Math.max(Math.ceil(wanted), measured.throttlePercent + leastThrottleStep));
}

/** The same guest, slowed down. */
function slowed(view: View, throttlePercent: number): View {
  const { measured, growth } = view;
  const bytes = (growth.bytes * (100 - throttlePercent)) / (100 - measured.throttlePercent);
  return { ...view, measured: { ...measured, throttlePercent }, growth: { ...growth, bytes } };
}

/** In the middle of a round only a budget that cannot be kept any more is a reason to do something. */
function during(view: View, now: Standing, level: number): Decision {
  const { budget, measured } = view;
  const foreseen = foresee(view, now);
  const telling = (measured.current?.millis ?? 0) >= tellingMillis;
  const late = foreseen.totalMillis > budget.maxTotalSeconds * 1000;
  const choice: Choice =
    late && telling && budget.onExceeded === "abort"
      ? { action: "abort", reason: tooLong(view, foreseen.totalMillis) }
      : { action: "round", reason: "the round goes on" };
  return toDecision(choice, { measured, level, foreseen });
}

interface Foreseen {
  totalMillis: number;
  downtimeMillis: number;
}

/** Follows the rules forward, as if all went on as measured. */
function foresee(view: View, from: Standing): Foreseen {
  let [now, then] = [from, view];
  if (view.measured.current !== undefined) now = standingAfter(then, now);
  for (;;) {
    const { action, throttlePercent } = choose(then, now);
    if (action === "throttle" && throttlePercent !== undefined) then = slowed(then, throttlePercent);
    else if (action !== "round") break;
    now = standingAfter(then, now);
  }
  const downtimeMillis = pauseAt(then, now);
  return { totalMillis: now.elapsedMillis + downtimeMillis, downtimeMillis };
}

function pauseAt({ measured, bytesPerMillis }: View, { bytes }: Standing): number {
  return measured.pauseMillis + bytes / bytesPerMillis;
}

function standingAfter({ growth, bytesPerMillis }: View, { bytes, rounds, elapsedMillis, least }: Standing): Standing {
  const millis = bytes / bytesPerMillis;
  const changed = changedIn(growth, millis);
  return {
    bytes: changed,
    rounds: rounds + 1,
    elapsedMillis: elapsedMillis + millis,
    least: Math.min(least, rounds === 0 ? least : bytes),
  };
}

function changedIn({ bytes, millis, exponent }: Growth, within: number): number {
  return bytes * (within / millis) ** exponent;
}

/** From the last two rounds: a guest that writes the same pages again and again changes no fewer of them in a shorter round. */
function growthOf({ rounds, current }: Measurements): Growth {
  const known = current !== undefined && current.dirtyBytes > 0 ? [current] : rounds;
  const [before, last] = [known.at(-2), known.at(-1)];
  if (last === undefined) return { bytes: 0, millis: 1, exponent: 1 };
  const growth = { bytes: last.dirtyBytes, millis: Math.max(1, last.millis), exponent: 1 };
  if (before === undefined || before.throttlePercent !== last.throttlePercent) return growth;
  const longer = Math.log(Math.max(1, before.millis) / growth.millis);
  const more = Math.log(Math.max(1, before.dirtyBytes) / Math.max(1, last.dirtyBytes));
  // two rounds of about the same length say nothing of others
  if (Math.abs(longer) < 0.2) return growth;
  return { ...growth, exponent: Math.min(1, Math.max(0, more / longer)) };
}

/** What was measured lately of link and compression; undefined while there is nothing to go by. */
function paceOf({ rounds, current, linkBytesPerSecond }: Measurements): Pace | undefined {
  const recent = recentOf(current === undefined ? rounds : [...rounds, current]);
  const last = recent[0];
  if (last === undefined) return linkBytesPerSecond === undefined ? undefined : { linkBytesPerMillis: linkBytesPerSecond / 1000 };
  const sum = (of: (round: MeasuredRound) => number): number => recent.reduce((total, round) => total + of(round), 0);
  return {
    linkBytesPerMillis: sum(({ bytes }) => bytes) / sum(({ linkMillis, millis }) => Math.max(linkMillis, millis / unseenLink)),
    sample: {
      level: last.level,
      sizeRatio: last.bytes / Math.max(1, last.rawBytes),
      bytesPerMillis: last.compressMillis > 0 ? last.rawBytes / last.compressMillis : undefined,
    },
  };
}

/** The newest first, and as many as say something: a short round alone would be judged by chance. */
function recentOf(rounds: readonly MeasuredRound[]): MeasuredRound[] {
  const recent: MeasuredRound[] = [];
  let millis = 0;
  for (const round of [...rounds].reverse()) {
    if (millis >= tellingMillis) break;
    if (round.bytes <= 0 || round.millis <= 0) continue;
    recent.push(round);
    millis += round.millis;
  }
  return recent;
}

/** The smallest remainder that a round before the last one has left, at the speed that the guest has now. */
function leastOf({ rounds, throttlePercent }: Measurements): number {
  const before = rounds.slice(0, -1).filter((round) => round.throttlePercent === throttlePercent);
  return Math.min(Infinity, ...before.map(({ dirtyBytes }) => dirtyBytes));
}

function processorOf({ rounds, current, idleProcessors }: Measurements): Processor {
  const last = current ?? rounds.at(-1);
  return { share: Math.min(1, idleProcessors + (last === undefined ? 0 : last.compressMillis / Math.max(1, last.millis))) };
}

function toDecision(
  { action, reason, throttlePercent }: Choice,
  { measured, level, foreseen }: { measured: Measurements; level: number; foreseen?: Foreseen },
): Decision {
  return {
    action,
    level,
    throttlePercent: throttlePercent ?? measured.throttlePercent,
    ...(foreseen && {
      predictedTotalMillis: Math.round(foreseen.totalMillis),
      predictedDowntimeMillis: Math.round(foreseen.downtimeMillis),
    }),
    reason,
  };
}

const inMillis = (millis: number): string => `${Math.round(millis)} ms`;
const inSeconds = (millis: number): string => `${Math.round(millis / 1000)} s`;
