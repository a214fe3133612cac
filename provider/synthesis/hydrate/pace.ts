// what may be on its way: enough to keep the link busy, and no more, since whatever is urgent queues behind it
const queueMillis = 80;
const leastBytes = 96 * 1024;
const mostBytes = 4 * 1024 * 1024;
// a window of this many requests is never quite empty while answers come
const requestsInWindow = 4;
const rateMillis = 300;

/** How many bytes to have on their way at a time, from how fast they came lately and how long the first of them takes. */
export class Pace {
  #arrivals: { at: number; bytes: number }[] = [];
  #askedWhenIdle: number | undefined;
  #roundTripMillis = Infinity;
  #inFlight = 0;

  asked(bytes: number, now: number): void {
    if (this.#inFlight === 0) this.#askedWhenIdle = now;
    this.#inFlight += bytes;
  }

  received(bytes: number, now: number): void {
    if (this.#askedWhenIdle !== undefined) this.#roundTripMillis = Math.min(this.#roundTripMillis, now - this.#askedWhenIdle);
    this.#askedWhenIdle = undefined;
    this.#inFlight -= bytes;
    this.#arrivals.push({ at: now, bytes });
    while ((this.#arrivals[0]?.at ?? now) < now - rateMillis) this.#arrivals.shift();
  }

  get inFlight(): number {
    return this.#inFlight;
  }

  /** How many bytes to ask for now, in one request; 0 = wait until more has come. */
  next(): number {
    const window = this.#window();
    const piece = Math.floor(window / requestsInWindow);
    return this.#inFlight + piece > window ? 0 : piece;
  }

  #window(): number {
    const [first, last] = [this.#arrivals[0], this.#arrivals.at(-1)];
    if (first === undefined || last === undefined || last.at - first.at < 10) return leastBytes;
    const bytes = this.#arrivals.reduce((sum, arrival) => sum + arrival.bytes, 0) - first.bytes;
    const perMillisecond = bytes / (last.at - first.at);
    return Math.min(mostBytes, Math.max(leastBytes, perMillisecond * (queueMillis + this.#roundTripMillis)));
  }
}
