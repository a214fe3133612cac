import type { ImageName } from "../layerFiles.ts";
import { blockBytes } from "../manifest.ts";
import type { Touch } from "../sealTypes.ts";

/** The layer whose files are read while they arrive. */
export interface ReadLayer {
  has(chunk: number): boolean;
  chunkOfFileOffset(image: ImageName, offset: number): number | undefined;
  blockOfFileOffset(image: ImageName, offset: number): number | undefined;
  read(image: ImageName, offset: number, length: number): Promise<Buffer>;
}

/** Reads of a layer's qcow2 files: each waits until all that it needs is here. */
export class LayerReads {
  readonly #layer: ReadLayer;
  readonly #urge: (chunk: number) => void;
  readonly #waiting = new Map<number, Set<() => void>>();
  readonly #since = new Set<{ at: number }>();
  readonly #touched = new Map<string, Touch>();

  constructor(layer: ReadLayer, urge: (chunk: number) => void) {
    this.#layer = layer;
    this.#urge = urge;
  }

  /** Since when the oldest read has been waiting. */
  get pendingSinceMillis(): number | undefined {
    const [first] = this.#since;
    return first?.at;
  }

  /** The blocks that were read, in the order of their first read. */
  get touched(): Touch[] {
    return [...this.#touched.values()];
  }

  async read(image: ImageName, range: { offset: number; length: number }, signal: AbortSignal): Promise<Buffer> {
    const missing = this.#missingIn(image, range);
    if (missing.length > 0) {
      const entry = { at: Date.now() };
      this.#since.add(entry);
      try {
        await Promise.all(missing.map((chunk) => this.#wait(chunk, signal)));
      } finally {
        this.#since.delete(entry);
      }
    }
    return this.#layer.read(image, range.offset, range.length);
  }

  record(image: ImageName, range: { offset: number; length: number }): void {
    for (const offset of blocksIn(range)) {
      const block = this.#layer.blockOfFileOffset(image, offset);
      const key = `${image} ${String(block)}`;
      if (block !== undefined && !this.#touched.has(key)) this.#touched.set(key, { image, block });
    }
  }

  arrived(chunk: number): void {
    for (const wake of this.#waiting.get(chunk) ?? []) wake();
    this.#waiting.delete(chunk);
  }

  #missingIn(image: ImageName, range: { offset: number; length: number }): number[] {
    const missing = new Set<number>();
    for (const offset of blocksIn(range)) {
      const chunk = this.#layer.chunkOfFileOffset(image, offset);
      if (chunk !== undefined && !this.#layer.has(chunk)) missing.add(chunk);
    }
    return [...missing];
  }

  #wait(chunk: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const gone = (): void => {
        this.#waiting.get(chunk)?.delete(wake);
        reject(signal.reason instanceof Error ? signal.reason : new Error("the reader has gone"));
      };
      const wake = (): void => {
        signal.removeEventListener("abort", gone);
        resolve();
      };
      if (signal.aborted) return gone();
      signal.addEventListener("abort", gone, { once: true });
      this.#waiting.set(chunk, (this.#waiting.get(chunk) ?? new Set()).add(wake));
      this.#urge(chunk);
    });
  }
}

/** The first byte of the range, and of each block of the file that begins in it. */
function* blocksIn({ offset, length }: { offset: number; length: number }): Generator<number> {
  for (let at = offset; at < offset + length; at = at - (at % blockBytes) + blockBytes) yield at;
}
