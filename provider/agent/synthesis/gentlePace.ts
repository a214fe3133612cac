// whoever else uses the link may have to wait for a piece that is on its way
const mostMillis = 60;
const leastBytes = 32 * 1024;
const mostBytes = 1024 * 1024;
const leastRestMillis = 20;
// an answer that begins so much later than the fastest one has waited behind something else, on the link or on a processor
const queuedMillis = 30;
const yielding = 4;

/** One piece: what was asked for, when its first byte came after the question, and when its last one. */
export interface Taken {
  bytes: number;
  firstMillis: number;
  totalMillis: number;
}

/**
 * How much to ask for at a time, and how long to rest after it. One piece is on its way at a time, so whatever delays its
 * first byte is somebody else's: then four fifths of the time are theirs, otherwise half of it.
 */
export class GentlePace {
  #fastestMillis = Infinity;
  #bytes = leastBytes;

  get bytes(): number {
    return this.#bytes;
  }

  /** Returns for how many milliseconds to rest now. */
  took({ bytes, firstMillis, totalMillis }: Taken): number {
    this.#fastestMillis = Math.min(this.#fastestMillis, firstMillis);
    const queued = firstMillis - this.#fastestMillis > queuedMillis;
    const millis = totalMillis - firstMillis;
    if (queued || millis > mostMillis) this.#bytes = Math.max(leastBytes, this.#bytes / 2);
    else if (millis < mostMillis / 2 && bytes === this.#bytes) this.#bytes = Math.min(mostBytes, this.#bytes * 2);
    return Math.max(leastRestMillis, queued ? totalMillis * yielding : millis);
  }
}
