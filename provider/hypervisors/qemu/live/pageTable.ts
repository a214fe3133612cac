import { createHash } from "node:crypto";
import { pageBytes } from "./ramStream.ts";
import type { RamBlock } from "./ramStream.ts";
import type { Place } from "./records.ts";

/** Enough that no two contents are ever taken for one. */
export const hashBytes = 16;

export function hashOf(data: Buffer): Buffer {
  return createHash("sha256").update(data).digest().subarray(0, hashBytes);
}

export const zeroHash = hashOf(Buffer.alloc(pageBytes));
const unknown = Buffer.alloc(hashBytes);

/** The guest's own memory; QEMU's other blocks hold firmware, which the target may have in another version. */
export const guestMemory = "pc.ram";

/** Stands for the content of a place that was not hashed; no content has such a hash. */
export function markOf({ image, unit }: Place): Buffer {
  const mark = Buffer.alloc(hashBytes, 0xff);
  mark.writeUInt32BE(image, 8);
  mark.writeUInt32BE(unit, 12);
  return mark;
}

/** Which content each page has on the target. */
export class PageTable {
  readonly #tables: Buffer[];

  constructor(blocks: readonly RamBlock[]) {
    this.#tables = blocks.map(({ name, bytes }) =>
      Buffer.alloc((bytes / pageBytes) * hashBytes, name === guestMemory ? zeroHash : unknown),
    );
  }

  /** Whether the target lacks this content; from now on it has it. */
  change(block: number, unit: number, hash: Buffer): boolean {
    const table = this.#tables[block] ?? unknown;
    const at = unit * hashBytes;
    if (table.compare(hash, 0, hashBytes, at, at + hashBytes) === 0) return false;
    hash.copy(table, at);
    return true;
  }
}
