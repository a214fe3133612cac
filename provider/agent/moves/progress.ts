import type { Decision } from "../handoffProtocol.ts";

/** How far a live move has come: what was sent, and what is expected where something can be. */
export interface Progress {
  id: string;
  to: string;
  /** Counted from 1. */
  round: number;
  bytes: number;
  elapsedMillis: number;
  expected?: Pick<Decision, "predictedTotalMillis" | "predictedDowntimeMillis"> | undefined;
}

/** The line that an operator sees meanwhile. */
export function progressText({ id, to, round, bytes, elapsedMillis, expected }: Progress): string {
  const sent = `moving ${id} to ${to}: round ${round}, ${(bytes / 1e6).toFixed(1)} MB sent in ${seconds(elapsedMillis)}`;
  const { predictedTotalMillis: total, predictedDowntimeMillis: pause } = expected ?? {};
  if (total === undefined || pause === undefined) return sent;
  const percent = Math.min(99, Math.floor((100 * elapsedMillis) / Math.max(1, total)));
  return `${sent}; ${percent} %, about ${seconds(Math.max(0, total - elapsedMillis))} to go, with a pause of about ${Math.round(pause)} ms`;
}

const seconds = (millis: number): string => `${Math.round(millis / 1000)} s`;
