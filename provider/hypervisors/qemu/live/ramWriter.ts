import { flags, marks, pageBytes, sectionHead } from "./ramStream.ts";

/** Writes a migration stream's sections of memory again: what QEMU on the target reads is as if it came from a QEMU. */
export class RamWriter {
  readonly #section: number;
  readonly #names: readonly string[];
  #last = -1;
  #parts: Buffer[] = [];
  /** Of the pages since the last time. */
  bytes = 0;

  constructor(section: number, names: readonly string[]) {
    this.#section = section;
    this.#names = names;
  }

  page(block: number, index: number, data: Buffer | undefined): void {
    const name = this.#names[block] ?? "";
    const again = block === this.#last;
    const head = Buffer.allocUnsafe(8 + (again ? 0 : 1 + name.length) + (data === undefined ? 1 : 0));
    const address = index * pageBytes;
    head.writeUInt32BE(Math.floor(address / 2 ** 32), 0);
    const kind = data === undefined ? flags.zero : flags.page;
    head.writeUInt32BE((address % 2 ** 32) + (again ? kind | flags.again : kind), 4);
    if (!again) head.writeUInt8(name.length, 8);
    if (!again) head.write(name, 9, "latin1");
    if (data === undefined) head.writeUInt8(0, head.length - 1);
    this.#last = block;
    this.#parts.push(head);
    if (data !== undefined) this.#parts.push(data);
    this.bytes += head.length + (data?.length ?? 0);
  }

  /** The pages since the last time, as a section of their own. */
  take(): Buffer | undefined {
    if (this.#parts.length === 0) return undefined;
    const end = Buffer.alloc(8);
    end.writeUInt32BE(flags.endOfSection, 4);
    const whole = Buffer.concat([sectionHead(marks.part, this.#section), ...this.#parts, end, sectionHead(marks.footer, this.#section)]);
    [this.#parts, this.bytes] = [[], 0];
    return whole;
  }
}
