import { freemem } from "node:os";

interface Size {
  cores: number;
  memoryMib: number;
}

interface Waiting {
  size: Size;
  admit(): void;
}

/** Lets as many guests start at once as the node's cores and free memory allow, in the order in which they came. */
export class StartQueue {
  readonly #cores: number;
  readonly #freeMib: () => number;
  readonly #starting = new Set<Size>();
  readonly #waiting: Waiting[] = [];

  constructor(cores: number, freeMib: () => number = () => freemem() / 1024 ** 2) {
    this.#cores = cores;
    this.#freeMib = freeMib;
  }

  async run<T>(size: Size, progress: { signal: AbortSignal; status(text: string): void }, work: () => Promise<T>): Promise<T> {
    await this.#enter(size, progress);
    try {
      return await work();
    } finally {
      this.#starting.delete(size);
      this.#admit();
    }
  }

  async #enter(size: Size, { signal, status }: { signal: AbortSignal; status(text: string): void }): Promise<void> {
    signal.throwIfAborted();
    if (this.#waiting.length === 0 && this.#fits(size)) return void this.#starting.add(size);
    status(`waiting for ${String(this.#starting.size + this.#waiting.length)} other starts on this node`);
    await new Promise<void>((resolve, reject) => {
      const waiting: Waiting = { size, admit: resolve };
      this.#waiting.push(waiting);
      const giveUp = (): void => {
        const at = this.#waiting.indexOf(waiting);
        if (at < 0) return;
        this.#waiting.splice(at, 1);
        this.#admit();
        reject(signal.reason instanceof Error ? signal.reason : new Error("cancelled"));
      };
      signal.addEventListener("abort", giveUp, { once: true });
    });
  }

  #admit(): void {
    for (let next = this.#waiting[0]; next !== undefined && this.#fits(next.size); next = this.#waiting[0]) {
      this.#waiting.shift();
      this.#starting.add(next.size);
      next.admit();
    }
  }

  /** One alone may always start: whether it fits at all was said in the preview, and the hypervisor says so again. */
  #fits({ cores, memoryMib }: Size): boolean {
    if (this.#starting.size === 0) return true;
    const sum = (field: keyof Size): number => [...this.#starting].reduce((total, size) => total + size[field], 0);
    // those that are starting have not touched all of their memory yet, so it still counts as free
    return sum("cores") + cores <= this.#cores && sum("memoryMib") + memoryMib <= this.#freeMib();
  }
}
