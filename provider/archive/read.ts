import { CloudletError } from "../core/errors.ts";
import { blockBytes, shown, typeFlags, type EntryType, type TarEntry } from "./tar.ts";

export interface ReadEntry {
  entry: TarEntry;
  /** To be read before the next entry is asked for, or left. */
  content: AsyncIterable<Buffer>;
}

/** Long names and extended attributes are no larger; more is an attack or damage. */
const headerLimit = 16 * 1024 * 1024;

const types = new Map<string, EntryType>(Object.entries(typeFlags).map(([type, flag]) => [flag, type as EntryType]));
types.set("\0", "file").set("7", "file");

type Pax = Record<string, string>;

/** The entries of an uncompressed tar (ustar, pax or GNU), in their order; the source is read to its end. */
export async function* readTar(source: AsyncIterable<Buffer>): AsyncGenerator<ReadEntry> {
  const cursor = new Cursor(source);
  try {
    yield* entriesOf(cursor);
    await cursor.drain();
  } finally {
    await cursor.close();
  }
}

async function* entriesOf(cursor: Cursor): AsyncGenerator<ReadEntry> {
  let everywhere: Pax = {};
  let next: Pax = {};
  for (;;) {
    const header = await cursor.block();
    if (header === undefined || header.every((byte) => byte === 0)) return;
    verify(header);
    const flag = String.fromCharCode(header[156] ?? 0);
    const size = next.size === undefined ? numberAt(header, 124, 12) : Number(next.size);
    if ("xgLK".includes(flag)) {
      const text = await cursor.take(size);
      if (flag === "g") everywhere = { ...everywhere, ...paxOf(text) };
      else next = { ...next, ...(flag === "x" ? paxOf(text) : { [flag === "L" ? "path" : "linkpath"]: untilZero(text) }) };
      continue;
    }
    const entry = entryOf(header, { flag, size, pax: { ...everywhere, ...next } });
    next = {};
    const content = cursor.content(size);
    yield { entry, content };
    for await (const _ of content);
    await cursor.padding(size);
  }
}

function entryOf(header: Buffer, { flag, size, pax }: { flag: string; size: number; pax: Pax }): TarEntry {
  const prefix = header.toString("latin1", 257, 262) === "ustar" && header[263] === 0x30 ? textAt(header, 345, 155) : "";
  const name = textAt(header, 0, 100);
  const path = pax.path ?? (prefix === "" ? name : `${prefix}/${name}`);
  // before ustar a directory was a file whose name ends with a slash
  const type = path.endsWith("/") && (flag === "0" || flag === "\0") ? "directory" : types.get(flag);
  if (type === undefined || Object.keys(pax).some((key) => key.startsWith("GNU.sparse."))) {
    throw new CloudletError("UNSUPPORTED", `a tar's ${shown(path)} is of kind "${flag}", which is not understood`, {
      fix: "pack it again without `--sparse` or `--multi-volume`",
    });
  }
  const xattrs = Object.entries(pax).flatMap(([key, value]) => (key.startsWith(xattrKey) ? [[key.slice(xattrKey.length), value]] : []));
  return {
    path,
    type,
    mode: numberAt(header, 100, 8) & 0o7777,
    uid: pax.uid === undefined ? numberAt(header, 108, 8) : Number(pax.uid),
    gid: pax.gid === undefined ? numberAt(header, 116, 8) : Number(pax.gid),
    mtime: Math.floor(pax.mtime === undefined ? numberAt(header, 136, 12) : Number(pax.mtime)),
    size: type === "file" ? size : 0,
    target: type === "link" || type === "symlink" ? (pax.linkpath ?? textAt(header, 157, 100)) : "",
    major: type === "character" || type === "block" ? numberAt(header, 329, 8) : 0,
    minor: type === "character" || type === "block" ? numberAt(header, 337, 8) : 0,
    xattrs: Object.fromEntries(xattrs) as Record<string, string>,
  };
}

const xattrKey = "SCHILY.xattr.";

function paxOf(text: Buffer): Pax {
  const records: Pax = {};
  for (let at = 0; at < text.length;) {
    const space = text.indexOf(0x20, at);
    const length = space < 0 ? 0 : Number(text.toString("latin1", at, space));
    const record = text.toString("latin1", space + 1, at + length - 1);
    const equals = record.indexOf("=");
    if (!Number.isInteger(length) || length < 4 || at + length > text.length || equals < 1) throw damaged("has a header that is none");
    records[record.slice(0, equals)] = record.slice(equals + 1);
    at += length;
  }
  return records;
}

function verify(header: Buffer): void {
  let sum = 0;
  for (let at = 0; at < blockBytes; at += 1) sum += at >= 148 && at < 156 ? 0x20 : (header[at] ?? 0);
  if (sum !== numberAt(header, 148, 8)) throw damaged("is damaged, or no tar at all");
}

function numberAt(header: Buffer, from: number, length: number): number {
  const field = header.subarray(from, from + length);
  // numbers that octal digits cannot hold are binary
  const first = field[0] ?? 0;
  const value = (first & 0x80) !== 0 ? binary(field) : parseInt(untilZero(field).trim() || "0", 8);
  if (!Number.isSafeInteger(value)) throw damaged("has a number that is none");
  return value;
}

function binary(field: Buffer): number {
  let value = (field[0] ?? 0) & 0x7f;
  if ((value & 0x40) !== 0) throw damaged("has a negative number");
  for (const byte of field.subarray(1)) value = value * 256 + byte;
  return value;
}

function textAt(header: Buffer, from: number, length: number): string {
  return untilZero(header.subarray(from, from + length));
}

function untilZero(field: Buffer): string {
  const zero = field.indexOf(0);
  return field.toString("latin1", 0, zero < 0 ? field.length : zero);
}

function damaged(how: string): CloudletError {
  return new CloudletError("INTEGRITY", `the tar ${how}`, { fix: "make or fetch it again" });
}

/** Reads a stream piece by piece. */
class Cursor {
  readonly #source: AsyncIterator<Buffer>;
  #rest: Buffer = Buffer.alloc(0);

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]();
  }

  /** undefined = the source has ended where a header may begin. */
  async block(): Promise<Buffer | undefined> {
    if (this.#rest.length === 0 && !(await this.#more())) return undefined;
    return this.take(blockBytes);
  }

  async take(bytes: number): Promise<Buffer> {
    if (bytes > headerLimit) throw damaged("has a header larger than any that is needed");
    const chunks: Buffer[] = [];
    for await (const chunk of this.content(bytes)) chunks.push(chunk);
    if (bytes % blockBytes !== 0) await this.padding(bytes);
    return chunks.length === 1 ? (chunks[0] ?? Buffer.alloc(0)) : Buffer.concat(chunks);
  }

  /** Once begun by one reader, another goes on where it stopped. */
  content(bytes: number): AsyncIterableIterator<Buffer> {
    let left = bytes;
    const next = async (): Promise<IteratorResult<Buffer>> => {
      if (left === 0) return { done: true, value: undefined };
      if (this.#rest.length === 0 && !(await this.#more())) throw damaged("ends too early");
      const value = this.#rest.subarray(0, left);
      this.#rest = this.#rest.subarray(value.length);
      left -= value.length;
      return { done: false, value };
    };
    const content: AsyncIterableIterator<Buffer> = { next, [Symbol.asyncIterator]: () => content };
    return content;
  }

  async padding(size: number): Promise<void> {
    const bytes = (blockBytes - (size % blockBytes)) % blockBytes;
    for await (const _ of this.content(bytes));
  }

  /** What follows the end of the archive. */
  async drain(): Promise<void> {
    while (await this.#more());
  }

  /** A reader that stops early lets go of the source. */
  async close(): Promise<void> {
    await this.#source.return?.();
  }

  async #more(): Promise<boolean> {
    for (;;) {
      const { done, value } = await this.#source.next();
      if (done === true) return false;
      this.#rest = value;
      if (value.length > 0) return true;
    }
  }
}
