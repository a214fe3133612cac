import { createHash } from "node:crypto";
import { blockBytes } from "./manifest.ts";

/** Where a block's bytes can be read again: which of the sources, and at which of its blocks. */
export interface Places {
  sources: Uint8Array;
  blocks: Uint32Array;
}

// four words of a SHA-256: two different blocks never agree in them by accident
const wordsPerKey = 4;

/** Different blocks, numbered as they come; equal ones get the same number. About 30 bytes of memory for each. */
export class BlockTable {
  #count = 0;
  #keys = new Uint32Array(1024 * wordsPerKey);
  #sources = new Uint8Array(1024);
  #blocks = new Uint32Array(1024);
  /** Open addressing: number + 1, or 0. */
  #slots = new Uint32Array(4096);

  get count(): number {
    return this.#count;
  }

  get places(): Places {
    return { sources: this.#sources.subarray(0, this.#count), blocks: this.#blocks.subarray(0, this.#count) };
  }

  /** The number of these bytes, which are block `block` of source `source`. */
  add(bytes: Buffer, source: number, block: number): number {
    const digest = createHash("sha256").update(bytes).digest();
    const key = Uint32Array.from({ length: wordsPerKey }, (_, word) => digest.readUInt32LE(word * 4));
    const mask = this.#slots.length - 1;
    let slot = (key[0] ?? 0) & mask;
    for (let found = this.#slots[slot] ?? 0; found !== 0; found = this.#slots[slot] ?? 0) {
      if (this.#hasKey(found - 1, key)) return found - 1;
      slot = (slot + 1) & mask;
    }
    if (this.#count === this.#blocks.length) this.#grow();
    const number = this.#count++;
    this.#keys.set(key, number * wordsPerKey);
    this.#sources[number] = source;
    this.#blocks[number] = block;
    this.#slots[slot] = number + 1;
    if (this.#count * 2 > this.#slots.length) this.#spread();
    return number;
  }

  #hasKey(number: number, key: Uint32Array): boolean {
    const start = number * wordsPerKey;
    return key.every((word, position) => this.#keys[start + position] === word);
  }

  #grow(): void {
    this.#keys = copyInto(new Uint32Array(this.#keys.length * 2), this.#keys);
    this.#sources = copyInto(new Uint8Array(this.#sources.length * 2), this.#sources);
    this.#blocks = copyInto(new Uint32Array(this.#blocks.length * 2), this.#blocks);
  }

  #spread(): void {
    this.#slots = new Uint32Array(this.#slots.length * 2);
    const mask = this.#slots.length - 1;
    for (let number = 0; number < this.#count; number++) {
      let slot = (this.#keys[number * wordsPerKey] ?? 0) & mask;
      while (this.#slots[slot] !== 0) slot = (slot + 1) & mask;
      this.#slots[slot] = number + 1;
    }
  }
}

/** Numbers, as many as come. */
export class NumberList {
  #numbers = new Uint32Array(1024);
  #count = 0;

  push(number: number): void {
    if (this.#count === this.#numbers.length) this.#numbers = copyInto(new Uint32Array(this.#count * 2), this.#numbers);
    this.#numbers[this.#count++] = number;
  }

  done(): Uint32Array {
    return this.#numbers.slice(0, this.#count);
  }
}

function copyInto<T extends Uint8Array | Uint32Array>(target: T, source: T): T {
  target.set(source);
  return target;
}

export const zeros = Buffer.alloc(4 * 1024 * 1024);

export function isZeroBlock(bytes: Buffer, offset: number): boolean {
  return bytes.compare(zeros, 0, blockBytes, offset, offset + blockBytes) === 0;
}
