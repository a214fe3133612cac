import { createHash } from "node:crypto";
import { open, type FileHandle } from "node:fs/promises";
import { z } from "zod";
import { digestSchema } from "../protocol.ts";

/** A file described by the digests of its pieces, so that the receiver asks only for those it has nowhere. */
export const recipeSchema = z.object({
  name: z.string().regex(/^[A-Za-z0-9][A-Za-z0-9._-]*$/),
  bytes: z.int().min(0),
  digest: digestSchema,
  pieces: z.array(z.tuple([digestSchema, z.int().min(1)])),
});
export type Recipe = z.infer<typeof recipeSchema>;

export type Format = "raw" | "tar";

export const sha256 = (data: Buffer): string => createHash("sha256").update(data).digest("hex");

/** Reads the file once and describes it. */
export async function makeRecipe(name: string, path: string, format: Format): Promise<Recipe> {
  const whole = createHash("sha256");
  const pieces: Recipe["pieces"] = [];
  let bytes = 0;
  for await (const piece of cut(path, format)) {
    whole.update(piece);
    bytes += piece.length;
    pieces.push([isZero(piece) ? zeroDigest(piece.length) : sha256(piece), piece.length]);
  }
  return { name, bytes, digest: whole.digest("hex"), pieces };
}

/** Names exactly what was exported: a copy may be activated only for the state that its recipes describe. */
export function sealOf(recipes: Recipe[]): string {
  return sha256(Buffer.from(JSON.stringify(recipes.map(({ name, digest, bytes }) => [name, digest, bytes]).sort())));
}

const zeroDigests = new Map<number, string>();

/** Holes need no bytes: the digest of that many zeros. */
export function zeroDigest(length: number): string {
  const known = zeroDigests.get(length) ?? sha256(Buffer.alloc(length));
  zeroDigests.set(length, known);
  return known;
}

const rawPiece = 64 * 1024;
const filePiece = 256 * 1024;
const block = 512;

/**
 * Cuts a file where equal content is likely to meet equal cuts elsewhere: disks at multiples of 64 KiB, the clusters of
 * qcow2; tars at the files they hold, so that a file of the base image is found wherever it stands in the archive.
 */
export async function* cut(path: string, format: Format): AsyncGenerator<Buffer> {
  const file = await open(path, "r");
  try {
    if (format === "raw") yield* fixed(file);
    else yield* alongTar(file);
  } finally {
    await file.close();
  }
}

async function* fixed(file: FileHandle): AsyncGenerator<Buffer> {
  for (;;) {
    const piece = await take(file, rawPiece);
    if (piece.length > 0) yield piece;
    if (piece.length < rawPiece) return;
  }
}

async function* alongTar(file: FileHandle): AsyncGenerator<Buffer> {
  let headers: Buffer[] = [];
  for (;;) {
    const header = await take(file, block);
    headers.push(header);
    if (header.length < block) break;
    const size = contentSize(header);
    // thousands of links in a row would be more than one piece
    if (size === 0 && headers.length * block < filePiece) continue;
    yield Buffer.concat(headers);
    headers = [];
    for (let left = size; left > 0;) {
      const piece = await take(file, Math.min(left, filePiece));
      if (piece.length === 0) return;
      yield piece;
      left -= piece.length;
    }
    const padding = await take(file, (block - (size % block)) % block);
    if (padding.length > 0) headers.push(padding);
  }
  const rest = Buffer.concat(headers);
  for (let offset = 0; offset < rest.length; offset += filePiece) yield rest.subarray(offset, offset + filePiece);
}

/** Size field of a ustar header, in octal or, for large files, in base 256; 0 for a block that is no header. */
function contentSize(header: Buffer): number {
  if (header.toString("latin1", 257, 262) !== "ustar") return 0;
  const field = header.subarray(124, 136);
  if (((field[0] ?? 0) & 0x80) !== 0) return Number(field.readBigUInt64BE(4));
  const size = Number.parseInt(field.toString("latin1").replace(/[^0-7].*$/s, "") || "0", 8);
  return Number.isFinite(size) ? size : 0;
}

async function take(file: FileHandle, length: number): Promise<Buffer> {
  const buffer = Buffer.allocUnsafe(length);
  let filled = 0;
  while (filled < length) {
    const { bytesRead } = await file.read(buffer, filled, length - filled);
    if (bytesRead === 0) break;
    filled += bytesRead;
  }
  return buffer.subarray(0, filled);
}

const zeros = Buffer.alloc(filePiece);

function isZero(piece: Buffer): boolean {
  return piece.length <= zeros.length && piece.equals(zeros.subarray(0, piece.length));
}
