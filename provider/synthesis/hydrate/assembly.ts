import type { Chunk } from "../manifest.ts";
import type { Range } from "./rangeConnection.ts";

interface Coming {
  /** Bytes from its beginning that were asked for, and that are here. */
  asked: number;
  have: number;
  bytes: Buffer;
}

export interface Whole {
  chunk: number;
  bytes: Buffer;
  urgent: boolean;
}

/** Which bytes of a pack to ask for next, and which chunks the bytes that come make whole. No effects. */
export class Assembly {
  readonly #chunks: readonly Chunk[];
  readonly #wanted: Set<number>;
  readonly #coming = new Map<number, Coming>();
  readonly #urgent: number[] = [];
  /** No chunk before it has anything left to ask for. */
  #cursor = 0;

  constructor(chunks: readonly Chunk[], missing: Iterable<number>) {
    this.#chunks = chunks;
    this.#wanted = new Set(missing);
  }

  /** Asked for before everything that is not urgent, in the order of these calls. */
  urge(chunk: number): void {
    if (this.#wanted.has(chunk) && !this.#urgent.includes(chunk)) this.#urgent.push(chunk);
  }

  get isUrgent(): boolean {
    return this.#firstUrgent() !== undefined;
  }

  /** The next range, of at most so many bytes; it runs over several chunks where they lie side by side. */
  next(maxBytes: number): Range | undefined {
    const urgent = this.#firstUrgent();
    if (urgent !== undefined) return this.#ask(urgent, maxBytes);
    while (this.#cursor < this.#chunks.length && this.#left(this.#cursor) === 0) this.#cursor++;
    const first = this.#ask(this.#cursor, maxBytes);
    if (first === undefined) return undefined;
    const range = { ...first };
    for (let chunk = this.#cursor + 1; range.bytes < maxBytes; chunk++) {
      const begins = this.#chunks[chunk]?.offset;
      // only what is adjacent and untouched goes along
      if (begins !== range.offset + range.bytes || (this.#coming.get(chunk)?.asked ?? 0) > 0) break;
      const more = this.#ask(chunk, maxBytes - range.bytes);
      if (more === undefined) break;
      range.bytes += more.bytes;
    }
    return range;
  }

  /** Nothing is left to ask for or to wait for. */
  get isDone(): boolean {
    return this.#wanted.size === 0;
  }

  /** Takes what came; returns the chunks that are whole now. */
  received(offset: number, bytes: Buffer): Whole[] {
    const whole: Whole[] = [];
    for (let taken = 0; taken < bytes.length;) {
      const chunk = this.#at(offset + taken);
      const coming = this.#coming.get(chunk);
      const begins = this.#chunks[chunk]?.offset ?? 0;
      if (coming === undefined || offset + taken - begins !== coming.have) throw new Error("bytes that were not asked for");
      const count = bytes.copy(coming.bytes, coming.have, taken, Math.min(bytes.length, taken + coming.bytes.length - coming.have));
      coming.have += count;
      taken += count;
      if (coming.have === coming.bytes.length) {
        whole.push({ chunk, bytes: coming.bytes, urgent: this.#urgent.includes(chunk) });
        this.#settle(chunk);
      }
    }
    return whole;
  }

  /** What was asked for and has not come is asked for again. `keep`: by the same node, so that the beginnings of chunks still count. */
  lost(keep: boolean): void {
    for (const coming of this.#coming.values()) {
      if (!keep) coming.have = 0;
      coming.asked = coming.have;
    }
    this.#cursor = 0;
  }

  /** A chunk that was whole and not what it should be. */
  again(chunk: number): void {
    this.#wanted.add(chunk);
    this.#cursor = Math.min(this.#cursor, chunk);
  }

  #firstUrgent(): number | undefined {
    return this.#urgent.find((chunk) => this.#left(chunk) > 0);
  }

  /** Bytes of a chunk that nobody has asked for. */
  #left(chunk: number): number {
    if (!this.#wanted.has(chunk)) return 0;
    return (this.#chunks[chunk]?.bytes ?? 0) - (this.#coming.get(chunk)?.asked ?? 0);
  }

  #ask(chunk: number, maxBytes: number): Range | undefined {
    const found = this.#chunks[chunk];
    const bytes = Math.min(this.#left(chunk), maxBytes);
    if (found === undefined || bytes === 0) return undefined;
    const coming = this.#coming.get(chunk) ?? { asked: 0, have: 0, bytes: Buffer.allocUnsafeSlow(found.bytes) };
    this.#coming.set(chunk, coming);
    const offset = found.offset + coming.asked;
    coming.asked += bytes;
    return { offset, bytes };
  }

  #settle(chunk: number): void {
    this.#wanted.delete(chunk);
    this.#coming.delete(chunk);
    const position = this.#urgent.indexOf(chunk);
    if (position >= 0) this.#urgent.splice(position, 1);
  }

  /** The chunk in which a byte of the pack is. */
  #at(offset: number): number {
    let [low, high] = [0, this.#chunks.length - 1];
    while (low < high) {
      const middle = Math.ceil((low + high) / 2);
      if ((this.#chunks[middle]?.offset ?? 0) <= offset) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
