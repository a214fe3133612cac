import { randomBytes } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { open as openFile, rename, rm, statfs, type FileHandle } from "node:fs/promises";
import { dirname } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { pack, type Pack } from "tar-stream";
import { z } from "zod";
import { digestSchema } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import { open, partNames, sizeText, type PartSource, type Part, type PartName, type Watch } from "./parts.ts";

/**
 * An overlay in one file: a tar whose first entry names all others with their sizes and digests. It depends on the
 * overlay's content only, so the same overlay gives the same file everywhere.
 */
const contentsName = "contents.json";
const contentsSchema = z.strictObject({
  format: z.literal("cloudlet-archive/1"),
  parts: z.array(z.strictObject({ name: z.enum(partNames), digest: digestSchema, bytes: z.int().min(0) })).min(1),
});

const blockBytes = 512;
const contentsLimit = 1024 * 1024;
const neutral = { mode: 0o644, mtime: new Date(0), uid: 0, gid: 0, uname: "", gname: "", type: "file" } as const;

/** Writes the archive beside its place and puts it there once it is whole; on failure nothing is left. */
export async function writeArchive(file: string, source: PartSource, watch: Watch): Promise<void> {
  await requireSpace(file, source.parts);
  const temporary = `${file}.${randomBytes(4).toString("hex")}.partial`;
  const archive = pack();
  const entries = addEntries(archive, source, watch).catch((error: unknown) => {
    archive.destroy(error instanceof Error ? error : new Error(String(error)));
    throw error;
  });
  try {
    // tar-stream's own stream type is streamx
    const written = pipeline(Readable.from(archive, { objectMode: false }), createWriteStream(temporary, { flags: "wx", mode: 0o644 }));
    // the first failure is the reason, the other one only follows from it
    await Promise.all([entries, written]);
    await sync(temporary);
    await rename(temporary, file);
  } catch (error) {
    await entries.catch(() => undefined);
    throw codeOfSystem(error, file);
  } finally {
    await rm(temporary, { force: true });
  }
}

/** Reads the list and the place of each entry, and refuses whatever `writeArchive` does not write. */
export async function openArchive(file: string): Promise<PartSource> {
  const handle = await openFile(file, "r").catch((error: unknown) => {
    throw codeOfSystem(error, file);
  });
  try {
    const { size } = await handle.stat();
    const reader = { handle, file, size };
    const first = await entryAt(reader, 0);
    if (first?.name !== contentsName || first.bytes > contentsLimit) throw broken(file, `it does not begin with ${contentsName}`);
    const { parts } = parseContents(file, await bytesAt(reader, first.start, first.bytes));
    const places = await placesOf(reader, parts, first);
    return {
      label: file,
      parts,
      read({ name, bytes }) {
        const start = places.get(name);
        if (start === undefined) throw broken(file, `it has no part ${name}`);
        // the end of a range is included
        return Promise.resolve(bytes === 0 ? Readable.from([]) : createReadStream(file, { start, end: start + bytes - 1 }));
      },
    };
  } finally {
    await handle.close();
  }
}

async function addEntries(archive: Pack, source: PartSource, watch: Watch): Promise<void> {
  const parts = source.parts.map(({ name, digest, bytes }) => ({ name, digest, bytes }));
  const contents = `${JSON.stringify({ format: "cloudlet-archive/1", parts }, null, 2)}\n`;
  await new Promise<void>((resolve, reject) => {
    archive.entry({ ...neutral, name: contentsName }, contents, (error) => (error ? reject(error) : resolve()));
  });
  for (const part of source.parts) {
    const content = await open(source, part, watch);
    await pipeline(content, archive.entry({ ...neutral, name: part.name, size: part.bytes }));
  }
  archive.finalize();
}

async function requireSpace(file: string, parts: readonly Part[]): Promise<void> {
  const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
  const { bavail, bsize } = await statfs(dirname(file)).catch((error: unknown) => {
    throw codeOfSystem(error, file);
  });
  if (bavail * bsize < bytes)
    throw new CloudletError("REFUSED", `${sizeText(bytes)} do not fit beside ${file}: ${sizeText(bavail * bsize)} are free`, {
      fix: "free disk space, or write it elsewhere",
    });
}

async function sync(file: string): Promise<void> {
  const handle = await openFile(file, "r");
  try {
    await handle.sync();
  } finally {
    await handle.close();
  }
}

interface Reader {
  handle: FileHandle;
  file: string;
  size: number;
}

interface Entry {
  name: string;
  /** Where its content begins, and how long it is. */
  start: number;
  bytes: number;
}

/** Every part that is listed, in the order of the list, and nothing else. */
async function placesOf(reader: Reader, parts: Part[], first: Entry): Promise<Map<PartName, number>> {
  const places = new Map<PartName, number>();
  let at = afterEntry(first);
  for (const { name, bytes } of parts) {
    const entry = await entryAt(reader, at);
    if (entry === undefined) throw broken(reader.file, `it ends before ${name}`);
    if (entry.name !== name) throw broken(reader.file, `it has "${entry.name}" where ${name} is listed`);
    if (entry.bytes !== bytes) throw broken(reader.file, `${name} has ${String(entry.bytes)} bytes where ${String(bytes)} are listed`);
    if (entry.start + bytes > reader.size) throw broken(reader.file, `it ends in the middle of ${name}`);
    places.set(name, entry.start);
    at = afterEntry(entry);
  }
  const extra = await entryAt(reader, at);
  if (extra !== undefined) throw broken(reader.file, `it has "${extra.name}", which is not listed`);
  return places;
}

function afterEntry({ start, bytes }: Entry): number {
  return start + Math.ceil(bytes / blockBytes) * blockBytes;
}

/** One header of the tar; undefined where the archive ends. */
async function entryAt(reader: Reader, at: number): Promise<Entry | undefined> {
  if (at >= reader.size) return undefined;
  const header = await bytesAt(reader, at, blockBytes);
  if (header.every((byte) => byte === 0)) return undefined;
  const sum = header.reduce((total, byte, position) => total + (position >= 148 && position < 156 ? 32 : byte), 0);
  if (sum !== numberOf(header.subarray(148, 156))) throw broken(reader.file, `the header at byte ${String(at)} is damaged`);
  const name = textOf(header.subarray(0, 100));
  const kind = textOf(header.subarray(156, 157));
  if (kind !== "0" && kind !== "") throw broken(reader.file, `"${name}" is not a plain file`);
  return { name, start: at + blockBytes, bytes: numberOf(header.subarray(124, 136)) };
}

async function bytesAt({ handle, file }: Reader, at: number, length: number): Promise<Buffer> {
  const { bytesRead, buffer } = await handle.read(Buffer.alloc(length), 0, length, at);
  if (bytesRead < length) throw broken(file, `it ends at byte ${String(at + bytesRead)}, in the middle of an entry`);
  return buffer;
}

function textOf(field: Buffer): string {
  const end = field.indexOf(0);
  return field.toString("latin1", 0, end < 0 ? field.length : end);
}

/** Octal, or binary where that is too short. */
function numberOf(field: Buffer): number {
  if (field[0] === 0x80) return Number(field.readBigUInt64BE(field.length - 8));
  return Number.parseInt(textOf(field).trim(), 8);
}

function parseContents(file: string, text: Buffer): z.infer<typeof contentsSchema> {
  const wrong = (why: string): CloudletError => broken(file, `its ${contentsName} ${why}`);
  let value: unknown;
  try {
    value = JSON.parse(text.toString("utf8"));
  } catch {
    throw wrong("is not JSON");
  }
  const parsed = contentsSchema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw wrong(`is wrong at ${issue?.path.join(".") ?? ""}: ${issue?.message ?? ""}`);
  }
  const names = parsed.data.parts.map(({ name }) => name);
  if (names.join() !== partNames.filter((name) => names.includes(name)).join()) throw wrong("names its parts twice, or in another order");
  return parsed.data;
}

function broken(file: string, why: string): CloudletError {
  return new CloudletError("INTEGRITY", `${file} is no whole archive of an overlay: ${why}`, { fix: "export the overlay again" });
}

/** What the operating system says about a file, as an error that names it. */
function codeOfSystem(error: unknown, file: string): unknown {
  if (error instanceof CloudletError || !(error instanceof Error)) return error;
  const code = "code" in error && error.code === "ENOENT" ? "NOT_FOUND" : "FAILED";
  return new CloudletError(code, `${file}: ${error.message}`, { cause: error, fix: "check the path and its permissions" });
}
