import { CloudletError } from "../../../core/errors.ts";

export const pageBytes = 4096;

export interface RamBlock {
  name: string;
  bytes: number;
}

/** What a migration stream consists of, in its order. `data` undefined = a page of zeros; buffers are valid only during the call. */
export interface RamSink {
  /** Once, before the first page. */
  blocks(section: number, blocks: readonly RamBlock[]): void;
  page(block: number, index: number, data: Buffer | undefined): void;
  /** Bytes that belong to QEMU alone. */
  verbatim(bytes: Buffer): void;
}

/** Marks of QEMU's stream (docs/devel/migration.rst there); the format is stable, since QEMUs of different versions understand each other. */
export const marks = { start: 1, part: 2, end: 3, full: 4, subsection: 5, configuration: 7, command: 8, footer: 0x7e } as const;
export const flags = { zero: 0x02, size: 0x04, page: 0x08, endOfSection: 0x10, again: 0x20 } as const;

const magic = 0x5145564d;
const version = 3;
const ramName = "ram";
const footerBytes = 5;
/** `MIG_CMD_POSTCOPY_ADVISE`. */
const adviseCommand = 3;
const bytesOfSections = 256;
const bufferBytes = 512 * 1024;

/**
 * Takes QEMU's migration stream apart while it comes: pages of memory one by one, and all else as it is. Once memory has
 * ended, everything is the devices'. Sections of others while memory goes on (they say only that they have nothing yet) are left out.
 */
export class RamStream {
  readonly #sink: RamSink;
  /** One for all that comes: a new one for each chunk would be gigabytes to collect in the middle of a round. */
  #rest: Buffer = Buffer.allocUnsafe(bufferBytes);
  #at = 0;
  #end = 0;
  #state: "opening" | "sections" | "pages" | "devices" = "opening";
  #section = 0;
  #ending = false;
  #blocks: RamBlock[] = [];
  #numbers = new Map<string, number>();
  #block = -1;
  /** Pages that have come so far. */
  pages = 0;

  constructor(sink: RamSink) {
    this.#sink = sink;
  }

  get isOver(): boolean {
    return this.#state === "devices";
  }

  push(chunk: Buffer): void {
    const left = this.#left;
    const rest = left + chunk.length > this.#rest.length ? Buffer.allocUnsafe(2 * (left + chunk.length)) : this.#rest;
    this.#rest.copy(rest, 0, this.#at, this.#end);
    chunk.copy(rest, left);
    [this.#rest, this.#at, this.#end] = [rest, 0, left + chunk.length];
    while (this.#step());
  }

  #step(): boolean {
    switch (this.#state) {
      case "opening":
        return this.#opening();
      case "sections":
        return this.#sectionBegins();
      case "pages":
        return this.#page();
      case "devices":
        if (this.#left > 0) this.#sink.verbatim(this.#take(this.#left));
        return false;
    }
  }

  /** Magic, version, and the machine's type. */
  #opening(): boolean {
    if (this.#left < 13) return false;
    if (this.#u32(0) !== magic || this.#u32(4) !== version || this.#u8(8) !== marks.configuration) throw strange("its beginning");
    const length = 13 + this.#u32(9);
    if (length > bytesOfSections) throw strange("its configuration");
    if (this.#left < length + 1) return false;
    if (this.#u8(length) === marks.subsection) throw strange("a part of its configuration");
    this.#sink.verbatim(this.#take(length));
    this.#state = "sections";
    return true;
  }

  #sectionBegins(): boolean {
    if (this.#left < 6) return false;
    const mark = this.#u8(0);
    if (mark === marks.command) return this.#command();
    const section = this.#u32(1);
    if (mark === marks.start) return this.#start(section);
    if (mark !== marks.part && mark !== marks.end) throw strange(`a section of kind ${String(mark)}`);
    if (section !== this.#section) return this.#foreign(section, { kept: false });
    this.#ending = mark === marks.end;
    this.#take(5);
    this.#state = "pages";
    return true;
  }

  /** That something might be sent later, after the start, which it never is here. */
  #command(): boolean {
    const length = 5 + this.#u16(3);
    if (this.#left < length) return false;
    if (this.#u16(1) !== adviseCommand) throw strange(`command ${String(this.#u16(1))}`);
    this.#take(length);
    return true;
  }

  #start(section: number): boolean {
    const headBytes = 6 + this.#u8(5) + 8;
    if (this.#left < headBytes + 8) return false;
    if (this.#text(6, this.#u8(5)) !== ramName) return this.#foreign(section, { kept: true });
    const head = this.#u64(headBytes);
    if ((head.flags & flags.size) === 0) throw strange("the list of its memory");
    const blocks: RamBlock[] = [];
    let at = headBytes + 8;
    for (let total = head.address; total > 0;) {
      if (this.#left < at + 1 || this.#left < at + 1 + this.#u8(at) + 8) return false;
      const name = this.#text(at + 1, this.#u8(at));
      const { address: bytes } = this.#u64(at + 1 + this.#u8(at));
      blocks.push({ name, bytes });
      total -= bytes;
      at += 1 + this.#u8(at) + 8;
    }
    if (this.#left < at + 8 + footerBytes) return false;
    if (this.#u64(at).flags !== flags.endOfSection || this.#u8(at + 8) !== marks.footer) throw strange("the end of the list of its memory");
    this.#section = section;
    this.#blocks = blocks;
    this.#numbers = new Map(blocks.map(({ name }, index) => [name, index]));
    this.#sink.verbatim(this.#take(at + 8 + footerBytes));
    this.#sink.blocks(section, blocks);
    this.#state = "sections";
    return true;
  }

  /** A section of somebody else, short, up to its footer. */
  #foreign(section: number, { kept }: { kept: boolean }): boolean {
    const footer = Buffer.alloc(footerBytes);
    footer.writeUInt8(marks.footer, 0);
    footer.writeUInt32BE(section, 1);
    const found = this.#rest.subarray(0, this.#end).indexOf(footer, this.#at);
    if (found < 0) {
      if (this.#left > bytesOfSections) throw strange("a section without an end");
      return false;
    }
    const bytes = this.#take(found + footerBytes - this.#at);
    if (kept) this.#sink.verbatim(bytes);
    return true;
  }

  #page(): boolean {
    if (this.#left < 8) return false;
    const { address, flags: what } = this.#u64(0);
    if (what === flags.endOfSection) return this.#pagesEnd();
    const named = (what & flags.again) === 0;
    if (this.#left < 9) return false;
    const headBytes = named ? 9 + this.#u8(8) : 8;
    const kind = what & ~flags.again;
    if (kind !== flags.zero && kind !== flags.page) throw strange(`a page of kind ${String(what)}`);
    if (this.#left < headBytes + (kind === flags.zero ? 1 : pageBytes)) return false;
    if (named) this.#block = this.#numbers.get(this.#text(9, this.#u8(8))) ?? -1;
    if (this.#block < 0) throw strange("a page of no memory");
    this.pages++;
    if (kind === flags.page) {
      const data = this.#rest.subarray(this.#at + headBytes, this.#at + headBytes + pageBytes);
      this.#sink.page(this.#block, address / pageBytes, data);
      this.#at += headBytes + pageBytes;
      return true;
    }
    if (this.#u8(headBytes) !== 0) throw strange("a page of one repeated byte");
    this.#sink.page(this.#block, address / pageBytes, undefined);
    this.#at += headBytes + 1;
    return true;
  }

  #pagesEnd(): boolean {
    if (this.#left < 8 + footerBytes) return false;
    if (this.#u8(8) !== marks.footer || this.#u32(9) !== this.#section) throw strange("the end of a section");
    const end = this.#take(8 + footerBytes);
    this.#state = this.#ending ? "devices" : "sections";
    if (this.#ending) this.#sink.verbatim(Buffer.concat([sectionHead(marks.end, this.#section), end]));
    return true;
  }

  get #left(): number {
    return this.#end - this.#at;
  }

  #take(length: number): Buffer {
    const bytes = this.#rest.subarray(this.#at, this.#at + length);
    this.#at += length;
    return bytes;
  }

  #u8(offset: number): number {
    return this.#rest.readUInt8(this.#at + offset);
  }

  #u16(offset: number): number {
    return this.#rest.readUInt16BE(this.#at + offset);
  }

  #u32(offset: number): number {
    return this.#rest.readUInt32BE(this.#at + offset);
  }

  /** An address is a multiple of a page, and flags are in what is left below. */
  #u64(offset: number): { address: number; flags: number } {
    const low = this.#u32(offset + 4);
    return {
      address: this.#u32(offset) * 2 ** 32 + (low & ~(pageBytes - 1)) + (low >= 2 ** 31 ? 2 ** 32 : 0),
      flags: low & (pageBytes - 1),
    };
  }

  #text(offset: number, length: number): string {
    return this.#rest.toString("latin1", this.#at + offset, this.#at + offset + length);
  }
}

export function sectionHead(mark: number, section: number): Buffer {
  const head = Buffer.alloc(5);
  head.writeUInt8(mark, 0);
  head.writeUInt32BE(section, 1);
  return head;
}

function strange(what: string): CloudletError {
  return new CloudletError("UNSUPPORTED", `QEMU's migration stream has something in it that is not understood here: ${what}`, {
    fix: "move the cloudlet while it is stopped",
  });
}
