/** Lets one operation at a time touch the same thing; those that wait go in the order in which they asked. */
export class KeyedLock {
  readonly #tails = new Map<string, Promise<void>>();
  readonly #places = new Map<string, number>();

  isHeld(key: string): boolean {
    return this.#tails.has(key);
  }

  /** Whether somebody waits behind the one that holds it. */
  isAwaited(key: string): boolean {
    return (this.#places.get(key) ?? 0) > 1;
  }

  /** Queues for all keys at once (so that two callers never wait for each other), runs, and gives them back. */
  async run<T>(keys: string | string[], work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const places = [...new Set(typeof keys === "string" ? [keys] : keys)].map((key) => this.#queue(key));
    try {
      await untilAborted(Promise.all(places.map((place) => place.before)), signal);
      return await work();
    } finally {
      // one that gave up lets those behind it wait for those in front only
      for (const place of places) place.release();
    }
  }

  #queue(key: string): { before: Promise<void>; release(): void } {
    const before = this.#tails.get(key) ?? Promise.resolve();
    let letGo = (): void => undefined;
    const held = new Promise<void>((resolve) => (letGo = resolve));
    const tail = before.then(() => held);
    this.#tails.set(key, tail);
    this.#places.set(key, (this.#places.get(key) ?? 0) + 1);
    const release = (): void => {
      const left = (this.#places.get(key) ?? 0) - 1;
      if (left > 0) this.#places.set(key, left);
      else this.#places.delete(key);
      letGo();
    };
    void tail.then(() => {
      if (this.#tails.get(key) === tail) this.#tails.delete(key);
    });
    return { before, release };
  }
}

function untilAborted(wait: Promise<unknown>, signal: AbortSignal | undefined): Promise<unknown> {
  if (signal === undefined) return wait;
  return new Promise<void>((resolve, reject) => {
    const onAbort = (): void => {
      reject(signal.reason instanceof Error ? signal.reason : new Error("cancelled"));
    };
    if (signal.aborted) {
      onAbort();
      return;
    }
    signal.addEventListener("abort", onAbort, { once: true });
    void wait.then(() => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    });
  });
}
