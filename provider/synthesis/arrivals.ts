import { open, readFile } from "node:fs/promises";
import { isMissing, writeDurably } from "../agent/durable.ts";

/** Remembers which chunks of an overlay are in a layer for good: the overlay's digest, a line end, one byte for each chunk. */
export class Arrivals {
  readonly #file: string;
  readonly #content: Buffer;
  readonly #start: number;

  private constructor(file: string, content: Buffer, start: number) {
    this.#file = file;
    this.#content = content;
    this.#start = start;
  }

  /** undefined = nothing is known of such a layer, or it was one of another overlay. */
  static async open(file: string, overlay: { digest: string; chunks: number }): Promise<Arrivals | undefined> {
    const head = `${overlay.digest}\n`;
    try {
      const content = await readFile(file);
      const fits = content.length === head.length + overlay.chunks && content.subarray(0, head.length).equals(Buffer.from(head));
      return fits ? new Arrivals(file, content, head.length) : undefined;
    } catch (error) {
      if (isMissing(error)) return undefined;
      throw error;
    }
  }

  static async begin(file: string, overlay: { digest: string; chunks: number }): Promise<Arrivals> {
    const head = Buffer.from(`${overlay.digest}\n`);
    const content = Buffer.concat([head, Buffer.alloc(overlay.chunks)]);
    await writeDurably(file, content, 0o600);
    return new Arrivals(file, content, head.length);
  }

  has(chunk: number): boolean {
    return this.#content[this.#start + chunk] === 1;
  }

  /** Only for chunks whose data is durable. */
  async add(chunks: readonly number[]): Promise<void> {
    for (const chunk of chunks) this.#content[this.#start + chunk] = 1;
    const handle = await open(this.#file, "r+");
    try {
      await handle.write(this.#content, 0, this.#content.length, 0);
      await handle.sync();
    } finally {
      await handle.close();
    }
  }
}
