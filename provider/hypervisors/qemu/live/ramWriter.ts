import { flags, marks, pageBytes, sectionHead } from "./ramStream.ts";

const roomBytes = 2 * 1024 * 1024;
/** Address and flags; what follows is the length and name of a block, and the one byte of a page of zeros. */
const headBytes = 8;

/** Writes a migration stream's sections of memory again: what QEMU on the target reads is as if it came from a QEMU. */
export class RamWriter {
  readonly #section: number;
  readonly #names: readonly string[];
  #last = -1;
  /** Two that take turns: new ones would be gigabytes to collect while a guest is on its way. */
  readonly #rooms: [Buffer, Buffer] = [Buffer.allocUnsafe(roomBytes), Buffer.allocUnsafe(roomBytes)];
  #used = 0;

  constructor(section: number, names: readonly string[]) {
    this.#section = section;
    this.#names = names;
  }

  /** Of the pages since the last time. */
  get bytes(): number {
    return this.#used;
  }

  page(block: number, index: number, data: Buffer | undefined): void {
    const name = this.#names[block] ?? "";
    const again = block === this.#last;
    if (this.#used === 0) this.#append(sectionHead(marks.part, this.#section));
    const room = this.#room(headBytes + 2 + name.length);
    const address = index * pageBytes;
    room.writeUInt32BE(Math.floor(address / 2 ** 32), this.#used);
    const kind = data === undefined ? flags.zero : flags.page;
    room.writeUInt32BE((address % 2 ** 32) + (again ? kind | flags.again : kind), this.#used + 4);
    this.#used += headBytes;
    if (!again) {
      this.#used = room.writeUInt8(name.length, this.#used);
      this.#used += room.write(name, this.#used, "latin1");
    }
    this.#last = block;
    if (data === undefined) this.#used = room.writeUInt8(0, this.#used);
    else this.#append(data);
  }

  /** The pages since the last time, as a section of their own, which stays as it is until the next one is taken. */
  take(): Buffer | undefined {
    if (this.#used === 0) return undefined;
    const end = Buffer.alloc(headBytes);
    end.writeUInt32BE(flags.endOfSection, 4);
    this.#append(end);
    this.#append(sectionHead(marks.footer, this.#section));
    const whole = this.#rooms[0].subarray(0, this.#used);
    this.#rooms.reverse();
    this.#used = 0;
    return whole;
  }

  #append(bytes: Buffer): void {
    bytes.copy(this.#room(bytes.length), this.#used);
    this.#used += bytes.length;
  }

  /** Where so many bytes more can be written. */
  #room(bytes: number): Buffer {
    const [room] = this.#rooms;
    if (this.#used + bytes <= room.length) return room;
    const larger = Buffer.allocUnsafe(2 * (this.#used + bytes));
    room.copy(larger, 0, 0, this.#used);
    return (this.#rooms[0] = larger);
  }
}
