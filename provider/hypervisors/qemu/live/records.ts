import { z } from "zod";
import { CloudletError } from "../../../core/errors.ts";
import { pageBytes } from "./ramStream.ts";

/*
 * What travels of a running guest, uncompressed: records of one letter and numbers in network order; a unit is 4 KiB.
 *   B length           JSON: the section of memory in QEMU's stream and the names of its blocks
 *   V length           bytes of QEMU's stream that are passed on as they are
 *   P block unit       a page of memory
 *   Z block unit count pages of zeros
 *   R block unit count image unit   pages that the target finds in an image that both nodes have
 *   D disk unit length  bytes of a disk (a multiple of a unit)
 *   H disk unit count   zeros on a disk
 *   C disk unit count image unit    units of a disk that the target finds in such an image
 *   E round            the end of a round
 */
const heads = { B: 4, V: 4, P: 5, Z: 9, R: 14, D: 9, H: 9, C: 14, E: 4 } as const;
type Letter = keyof typeof heads;

/** A place in one of the images that both nodes have. */
export interface Place {
  image: number;
  unit: number;
}

export const ramMapSchema = z.object({ section: z.int(), names: z.array(z.string().max(255)).max(64) });
export type RamMap = z.infer<typeof ramMapSchema>;

const segmentBytes = 256 * 1024;
const longestPayload = 64 * 1024 * 1024;

/** Puts records into large buffers. */
export class RecordWriter {
  #segment = Buffer.allocUnsafe(segmentBytes);
  #used = 0;
  #full: Buffer[] = [];
  #run: { letter: "Z" | "R" | "C"; block: number; unit: number; count: number; place: Place } | undefined;

  map(map: RamMap): void {
    this.#payload("B", Buffer.from(JSON.stringify(map)));
  }

  verbatim(bytes: Buffer): void {
    this.#payload("V", bytes);
  }

  page(block: number, unit: number, data: Buffer): void {
    this.#endRun();
    const at = this.#head("P");
    this.#segment.writeUInt8(block, at);
    this.#segment.writeUInt32BE(unit, at + 1);
    this.#append(data);
  }

  zeroPage(block: number, unit: number): void {
    this.#extend("Z", { block, unit }, { image: 0, unit });
  }

  referredPage(block: number, unit: number, place: Place): void {
    this.#extend("R", { block, unit }, place);
  }

  disk(disk: number, unit: number, data: Buffer): void {
    this.#endRun();
    this.#diskHead("D", disk, { unit, number: data.length });
    this.#append(data);
  }

  diskZeros(disk: number, unit: number, count: number): void {
    this.#endRun();
    this.#diskHead("H", disk, { unit, number: count });
  }

  diskCopy(disk: number, unit: number, place: Place): void {
    this.#extend("C", { block: disk, unit }, place);
  }

  end(round: number): void {
    this.#endRun();
    const at = this.#head("E");
    this.#segment.writeUInt32BE(round, at);
  }

  /** What is ready to be sent. */
  take(everything: boolean): Buffer[] {
    if (everything) {
      this.#endRun();
      this.#endSegment();
    }
    const full = this.#full;
    this.#full = [];
    return full;
  }

  #extend(letter: "Z" | "R" | "C", at: { block: number; unit: number }, place: Place): void {
    const run = this.#run;
    const follows =
      run !== undefined &&
      run.letter === letter &&
      run.block === at.block &&
      run.unit + run.count === at.unit &&
      run.place.image === place.image &&
      run.place.unit + run.count === place.unit;
    if (follows) return void run.count++;
    this.#endRun();
    this.#run = { letter, ...at, count: 1, place };
  }

  #endRun(): void {
    const run = this.#run;
    if (run === undefined) return;
    this.#run = undefined;
    const at = this.#head(run.letter);
    this.#segment.writeUInt8(run.block, at);
    this.#segment.writeUInt32BE(run.unit, at + 1);
    this.#segment.writeUInt32BE(run.count, at + 5);
    if (run.letter === "Z") return;
    this.#segment.writeUInt8(run.place.image, at + 9);
    this.#segment.writeUInt32BE(run.place.unit, at + 10);
  }

  #diskHead(letter: "D" | "H", disk: number, { unit, number }: { unit: number; number: number }): void {
    const at = this.#head(letter);
    this.#segment.writeUInt8(disk, at);
    this.#segment.writeUInt32BE(unit, at + 1);
    this.#segment.writeUInt32BE(number, at + 5);
  }

  #payload(letter: "B" | "V", bytes: Buffer): void {
    this.#endRun();
    const at = this.#head(letter);
    this.#segment.writeUInt32BE(bytes.length, at);
    this.#append(bytes);
  }

  /** Room for a record's head, in one segment; returns where its numbers go. */
  #head(letter: Letter): number {
    const length = 1 + heads[letter];
    if (this.#used + length > this.#segment.length) this.#endSegment();
    this.#segment.write(letter, this.#used, "latin1");
    this.#used += length;
    return this.#used - heads[letter];
  }

  #append(data: Buffer): void {
    for (let done = 0; done < data.length;) {
      if (this.#used === this.#segment.length) this.#endSegment();
      const part = data.copy(this.#segment, this.#used, done);
      done += part;
      this.#used += part;
    }
  }

  #endSegment(): void {
    if (this.#used === 0) return;
    this.#full.push(this.#segment.subarray(0, this.#used));
    this.#segment = Buffer.allocUnsafe(segmentBytes);
    this.#used = 0;
  }
}

export type LiveRecord =
  | { letter: "B"; map: RamMap }
  | { letter: "V"; bytes: Buffer }
  | { letter: "P"; block: number; unit: number; bytes: Buffer }
  | { letter: "Z"; block: number; unit: number; count: number }
  | { letter: "R"; block: number; unit: number; count: number; place: Place }
  | { letter: "D"; disk: number; unit: number; bytes: Buffer }
  | { letter: "H"; disk: number; unit: number; count: number }
  | { letter: "C"; disk: number; unit: number; count: number; place: Place }
  | { letter: "E"; round: number };

/** Takes records out of bytes that come in pieces. */
export class RecordReader {
  #rest: Buffer = Buffer.alloc(0);

  *push(chunk: Buffer): Generator<LiveRecord> {
    this.#rest = this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]);
    let at = 0;
    for (;;) {
      const found = readRecord(this.#rest, at);
      if (found === undefined) break;
      at = found.next;
      yield found.record;
    }
    this.#rest = this.#rest.subarray(at);
  }

  /** Whether the last record has come whole. */
  get isEmpty(): boolean {
    return this.#rest.length === 0;
  }
}

function readRecord(bytes: Buffer, start: number): { record: LiveRecord; next: number } | undefined {
  if (bytes.length < start + 1) return undefined;
  const letter = String.fromCharCode(bytes.readUInt8(start));
  if (!isLetter(letter)) throw damaged(`a record of kind ${JSON.stringify(letter)}`);
  const at = start + 1;
  const next = at + heads[letter];
  if (bytes.length < next) return undefined;
  const length = payloadBytes(letter, bytes, at);
  if (length > longestPayload) throw damaged(`a record of ${String(length)} bytes`);
  if (bytes.length < next + length) return undefined;
  return { record: parseRecord(letter, bytes, { at, payload: bytes.subarray(next, next + length) }), next: next + length };
}

function payloadBytes(letter: Letter, bytes: Buffer, at: number): number {
  if (letter === "B" || letter === "V") return bytes.readUInt32BE(at);
  if (letter === "D") return bytes.readUInt32BE(at + 5);
  return letter === "P" ? pageBytes : 0;
}

function parseRecord(letter: Letter, bytes: Buffer, { at, payload }: { at: number; payload: Buffer }): LiveRecord {
  if (letter === "B") return { letter, map: ramMapSchema.parse(JSON.parse(payload.toString("utf8"))) };
  if (letter === "V") return { letter, bytes: payload };
  if (letter === "E") return { letter, round: bytes.readUInt32BE(at) };
  const [first, unit] = [bytes.readUInt8(at), bytes.readUInt32BE(at + 1)];
  if (letter === "P") return { letter, block: first, unit, bytes: payload };
  if (letter === "D") return { letter, disk: first, unit, bytes: payload };
  const count = bytes.readUInt32BE(at + 5);
  if (letter === "Z") return { letter, block: first, unit, count };
  if (letter === "H") return { letter, disk: first, unit, count };
  const place = { image: bytes.readUInt8(at + 9), unit: bytes.readUInt32BE(at + 10) };
  return letter === "R" ? { letter, block: first, unit, count, place } : { letter, disk: first, unit, count, place };
}

function isLetter(text: string): text is Letter {
  return Object.hasOwn(heads, text);
}

function damaged(what: string): CloudletError {
  return new CloudletError("INTEGRITY", `what arrives of the running guest is damaged: it has ${what}`);
}
