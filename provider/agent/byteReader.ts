import type { Readable } from "node:stream";

/** Takes exactly so many bytes at a time from a stream. */
export class ByteReader {
  readonly #stream: Readable;
  #ended = false;
  #wake: () => void = () => undefined;

  constructor(stream: Readable) {
    this.#stream = stream;
    stream.on("readable", () => this.#wake());
    for (const event of ["end", "close", "error"]) {
      stream.on(event, () => {
        this.#ended = true;
        this.#wake();
      });
    }
  }

  /** undefined = the other side ended before. */
  async take(length: number): Promise<Buffer | undefined> {
    if (length === 0) return Buffer.alloc(0);
    for (;;) {
      const woken = new Promise<void>((resolve) => (this.#wake = resolve));
      const bytes: unknown = this.#ended ? undefined : this.#stream.read(length);
      // at its end a stream gives what is left, which is less
      if (Buffer.isBuffer(bytes)) return bytes.length === length ? bytes : undefined;
      if (this.#ended) return undefined;
      await woken;
    }
  }
}
