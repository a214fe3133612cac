/** Lets one operation at a time touch the same thing; those that wait go in the order in which they asked. */
export class KeyedLock {
  readonly #tails = new Map<string, Promise<void>>();

  isHeld(key: string): boolean {
    return this.#tails.has(key);
  }

  /** Takes all keys (in one fixed order, so that two callers never wait for each other), runs, and gives them back. */
  async run<T>(keys: string | string[], work: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    const wanted = [...new Set(typeof keys === "string" ? [keys] : keys)].sort();
    const releases: (() => void)[] = [];
    try {
      for (const key of wanted) releases.push(await this.#take(key, signal));
      return await work();
    } finally {
      for (const release of releases.reverse()) release();
    }
  }

  async #take(key: string, signal: AbortSignal | undefined): Promise<() => void> {
    const before = this.#tails.get(key) ?? Promise.resolve();
    let release = (): void => undefined;
    const held = new Promise<void>((resolve) => (release = resolve));
    const tail = before.then(() => held);
    this.#tails.set(key, tail);
    void tail.then(() => {
      if (this.#tails.get(key) === tail) this.#tails.delete(key);
    });
    try {
      await untilAborted(before, signal);
    } catch (error) {
      // the place in the queue is given up; whoever is behind waits for those in front only
      release();
      throw error;
    }
    return release;
  }
}

function untilAborted(wait: Promise<void>, signal: AbortSignal | undefined): Promise<void> {
  if (signal === undefined) return wait;
  return new Promise((resolve, reject) => {
    const onAbort = (): void => {
      reject(signal.reason instanceof Error ? signal.reason : new Error("cancelled"));
    };
    if (signal.aborted) return onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    void wait.then(() => {
      signal.removeEventListener("abort", onAbort);
      resolve();
    });
  });
}
