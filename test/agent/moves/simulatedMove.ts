import type { Budget, Decision } from "../../../provider/agent/handoffProtocol.ts";
import { decide, type MeasuredRound, type Measurements } from "../../../provider/agent/moves/controller.ts";

/** A guest, its node and a link, as a few numbers. */
export interface World {
  /** What differs at the begin. */
  bytes: number;
  linkBytesPerSecond: number;
  /** Compressed by uncompressed at level 1. */
  sizeRatio: number;
  /** Level 1 on one processor. */
  compressBytesPerSecond: number;
  idleProcessors: number;
  /** What the guest writes, and how much memory it does that in. */
  writtenBytesPerSecond: number;
  workingSetBytes: number;
  pauseMillis: number;
}

export interface Outcome {
  decisions: Decision[];
  rounds: MeasuredRound[];
  end: "paused" | "aborted" | "endless";
  totalMillis: number;
  downtimeMillis: number;
}

const mostDecisions = 200;
const speeds: Record<number, number> = { 1: 1, 3: 0.6, 6: 0.22, 9: 0.12, 12: 0.053, 19: 0.0055 };

/** Lets the controller decide about a move in such a world, to its end. */
export function simulate(world: World, budget: Budget): Outcome {
  const [decisions, rounds]: [Decision[], MeasuredRound[]] = [[], []];
  let [bytes, elapsedMillis, throttlePercent] = [world.bytes, 0, 0];
  while (decisions.length < mostDecisions) {
    const { pauseMillis, idleProcessors } = world;
    const remaining = { memoryBytes: bytes, diskBytes: 0 };
    const decision = decide(budget, { elapsedMillis, rounds, remaining, idleProcessors, throttlePercent, pauseMillis });
    decisions.push(decision);
    if (decision.action === "abort") return { decisions, rounds, end: "aborted", totalMillis: elapsedMillis, downtimeMillis: 0 };
    throttlePercent = decision.throttlePercent;
    const round = sent(world, bytes, decision);
    rounds.push(round);
    if (decision.action === "stop") {
      const downtimeMillis = round.millis + pauseMillis;
      return { decisions, rounds, end: "paused", totalMillis: elapsedMillis + downtimeMillis, downtimeMillis };
    }
    elapsedMillis += round.millis;
    bytes = round.dirtyBytes;
  }
  return { decisions, rounds, end: "endless", totalMillis: elapsedMillis, downtimeMillis: 0 };
}

function sent(world: World, bytes: number, { level, throttlePercent }: Decision): MeasuredRound {
  const compressMillis = (1000 * bytes) / (world.compressBytesPerSecond * (speeds[level] ?? 1));
  const share = Math.min(1, Math.max(0.05, world.idleProcessors));
  const wire = bytes * world.sizeRatio;
  const onLink = (1000 * wire) / world.linkBytesPerSecond;
  const millis = Math.max(1, compressMillis / share, onLink);
  const linkMillis = millis > onLink ? 0 : millis;
  const written = world.writtenBytesPerSecond * (millis / 1000) * (1 - throttlePercent / 100);
  const dirtyBytes = world.workingSetBytes * (1 - Math.exp(-written / world.workingSetBytes));
  return {
    pages: Math.ceil(bytes / 4096),
    blocks: 0,
    rawBytes: bytes,
    bytes: wire,
    millis,
    level,
    throttlePercent,
    compressMillis,
    linkMillis,
    dirtyBytes,
  };
}

/** Measurements as a table may give them: rounds as [uncompressed, compressed, millis, changed meanwhile]. */
export function measurements(rounds: [number, number, number, number][], rest: Partial<Measurements> = {}): Measurements {
  const measured = rounds.map(([rawBytes, bytes, millis, dirtyBytes]) => ({
    ...{ pages: Math.ceil(rawBytes / 4096), blocks: 0, rawBytes, bytes, millis, dirtyBytes },
    ...{ level: 3, throttlePercent: 0, compressMillis: rawBytes / 100_000, linkMillis: millis },
  }));
  const elapsedMillis = measured.reduce((sum, { millis }) => sum + millis, 0);
  const remaining = { memoryBytes: measured.at(-1)?.dirtyBytes ?? 0, diskBytes: 0 };
  return { elapsedMillis, rounds: measured, remaining, idleProcessors: 1, throttlePercent: 0, pauseMillis: 300, ...rest };
}
