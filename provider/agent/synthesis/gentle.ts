import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../../core/errors.ts";
import { RangeConnection, type Range, type RangeListener } from "../../synthesis/hydrate/rangeConnection.ts";
import type { Offer } from "../protocol.ts";
import { GentlePace, type Taken } from "./gentlePace.ts";

const silenceMillis = 20_000;

interface Wanted {
  offer: Offer;
  digest: string;
  bytes: number;
  /** Those before it are here. */
  from: number;
  /** Whether somebody waits for it, so that there is no time to rest. */
  isAwaited(): boolean;
}

/** The bytes of a blob from one offer, a piece at a time, with rests between them that grow where others use the link. */
export async function* gentleBytes({ offer, digest, bytes, from, isAwaited }: Wanted, signal: AbortSignal): AsyncGenerator<Buffer> {
  const pieces = new Pieces(offer);
  const pace = new GentlePace();
  try {
    await pieces.dial(digest);
    for (let at = from; at < bytes;) {
      const { piece, ...taken } = await pieces.take({ offset: at, bytes: Math.min(pace.bytes, bytes - at) }, signal);
      at += piece.length;
      yield piece;
      const rest = pace.took(taken);
      if (at < bytes && !isAwaited()) await sleep(rest, undefined, { signal });
    }
  } finally {
    pieces.close();
  }
}

/** Pieces of one blob, one after the other. */
class Pieces implements RangeListener {
  readonly #offer: Offer;
  #connection: RangeConnection | undefined;
  #parts: Buffer[] = [];
  #missing = 0;
  #firstAt = 0;
  #whole: () => void = () => undefined;
  #fail: (error: unknown) => void = () => undefined;
  #failure: CloudletError | undefined;

  constructor(offer: Offer) {
    this.#offer = offer;
  }

  async dial(digest: string): Promise<void> {
    this.#connection = await RangeConnection.dial(this.#offer, digest, this);
  }

  async take(range: Range, signal: AbortSignal): Promise<Taken & { piece: Buffer }> {
    const askedAt = performance.now();
    this.#parts = [];
    this.#missing = range.bytes;
    const whole = new Promise<void>((resolve, reject) => {
      this.#whole = resolve;
      this.#fail = reject;
    });
    const aborted = (): void => this.#fail(signal.reason);
    const silent = setTimeout(() => this.lost(new CloudletError("UNREACHABLE", `${this.#offer.node} fell silent`)), silenceMillis);
    signal.addEventListener("abort", aborted);
    if (this.#failure !== undefined) this.#fail(this.#failure);
    else this.#connection?.request(range);
    try {
      await whole;
    } finally {
      clearTimeout(silent);
      signal.removeEventListener("abort", aborted);
    }
    const piece = Buffer.concat(this.#parts);
    return { piece, bytes: piece.length, firstMillis: this.#firstAt - askedAt, totalMillis: performance.now() - askedAt };
  }

  received(_offset: number, bytes: Buffer): void {
    if (this.#parts.length === 0) this.#firstAt = performance.now();
    this.#parts.push(bytes);
    this.#missing -= bytes.length;
    if (this.#missing === 0) this.#whole();
  }

  lost(error: CloudletError): void {
    this.#failure = error;
    this.#fail(error);
  }

  close(): void {
    this.#connection?.close();
  }
}
