import { createHash, randomBytes } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { finished } from "node:stream/promises";
import { z } from "zod";
import { run } from "../../agent/process.ts";
import { packTree } from "../../archive/pack.ts";
import { readTar } from "../../archive/read.ts";
import { readTree, type Source } from "../../archive/tree.ts";
import { endOfTar, headerOf, paddingOf } from "../../archive/write.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Progress } from "../types.ts";
import { ask, find } from "./client.ts";
import { keys } from "./mapping.ts";
import { deadlines, perform, waitOf } from "./operations.ts";

// trap: LXD 5.0 ends with a panic when an upload names properties and its metadata.yaml has none, so the file name says what it is
const nameOf = (key: string) => `cloudlet-${key}.tar`;
const markerLength = 262;

export interface Blob {
  digest: string;
  path: string;
}

/** What a container is made from. */
export interface Makings {
  base: Blob;
  /** Of an overlay, over the base. */
  delta?: Blob | undefined;
  /** For temporary files. */
  directory: string;
}

const imageSchema = z.object({ fingerprint: z.string(), filename: z.string() });

/** Fingerprint of the image made from a base, or from a base and a delta; imported on first use. */
export async function ensureImage(rest: Rest, makings: Makings, progress: Progress): Promise<string> {
  const { base, delta, directory } = makings;
  const key = imageKey(base.digest, delta?.digest);
  // LXD calls an image by the digest of its bytes, so whoever brought it, it is the same
  const known = (await images(rest, progress.signal)).find(({ filename, fingerprint }) => filename === nameOf(key) || fingerprint === key);
  if (known !== undefined) return known.fingerprint;
  progress.status(`importing base ${base.digest.slice(0, 12)}${delta === undefined ? "" : " with its overlay"} into LXD`);
  return await withPlain(base, { directory, progress }, async (plain) => {
    const body = delta === undefined && plain.unified ? createReadStream(plain.path) : await layered(plain, delta);
    return await importImage(rest, { key, body, what: `import base ${base.digest.slice(0, 12)}` }, progress);
  });
}

/** Removes our images that no container is made from. */
export async function collectImages(rest: Rest, progress: Progress): Promise<void> {
  const instances = await ask(
    rest,
    { method: "GET", path: "/1.0/instances?recursion=1", what: "list instances", signal: progress.signal },
    z.array(z.object({ config: z.record(z.string(), z.string()) })),
  );
  const used = new Set(instances.map(({ config }) => imageKey(config[keys.base] ?? "", config[keys.delta])));
  await removeImages(rest, (key) => !used.has(key), progress);
}

function imageKey(base: string, delta: string | undefined): string {
  return delta === undefined ? base : createHash("sha256").update(`${base} ${delta}`).digest("hex");
}

export async function removeImages(rest: Rest, which: (key: string) => boolean, progress: Progress): Promise<void> {
  for (const image of await images(rest, progress.signal)) {
    const key = /^cloudlet-([0-9a-f]{64})\.tar$/.exec(image.filename)?.[1];
    if (key === undefined || !which(key)) continue;
    await perform(
      rest,
      { method: "DELETE", path: `/1.0/images/${image.fingerprint}`, what: `remove the image ${image.filename}` },
      waitOf(progress, deadlines.remove),
    );
  }
}

export type Compression = "none" | "gzip" | "xz" | "zstd" | "bzip2";

const magics: readonly [Compression, number, string][] = [
  ["gzip", 0, "1f8b"],
  ["xz", 0, "fd377a585a00"],
  ["zstd", 0, "28b52ffd"],
  ["bzip2", 0, "425a68"],
  ["none", 257, Buffer.from("ustar").toString("hex")],
];

/** What the first bytes of a base say; undefined = no tar at all. */
export function compressionOf(head: Buffer): Compression | undefined {
  return magics.find(([, offset, magic]) => head.subarray(offset, offset + magic.length / 2).toString("hex") === magic)?.[0];
}

/** LXD's names for what Node calls `process.arch`. */
export function lxdArchitecture(arch: string): string {
  return { x64: "x86_64", arm64: "aarch64", arm: "armv7l", ia32: "i686" }[arch] ?? arch;
}

function images(rest: Rest, signal: AbortSignal) {
  return ask(rest, { method: "GET", path: "/1.0/images?recursion=1", what: "list images", signal }, z.array(imageSchema));
}

/** A base without its compression. */
export interface Plain {
  path: string;
  /** Whether it is an image in LXD's form, with the root file system below `rootfs/`. */
  unified: boolean;
}

/** Temporary files are gone when the work is done. */
export async function withPlain<T>(
  base: Blob,
  { directory, progress }: { directory: string; progress: Progress },
  work: (plain: Plain) => Promise<T>,
): Promise<T> {
  await mkdir(directory, { recursive: true });
  const temporary = join(directory, `${base.digest}.${randomBytes(4).toString("hex")}.tar`);
  try {
    const path = await decompressed(base, temporary, progress);
    return await work({ path, unified: await isImage(path) });
  } finally {
    await rm(temporary, { force: true });
  }
}

async function decompressed(base: Blob, temporary: string, progress: Progress): Promise<string> {
  const compression = compressionOf(await head(base.path));
  if (compression === "none") return base.path;
  if (compression === undefined) {
    throw new CloudletError("INVALID", `base ${base.digest.slice(0, 12)} is not a tar, so it cannot be a container's base`, {
      fix: "give a tar of a root file system or a unified LXD image (tar, also gzip, xz, zstd)",
    });
  }
  await run(["sh", "-c", `exec ${compression} -dc <"$1" >"$2"`, "sh", base.path, temporary], {
    timeoutMillis: deadlines.image,
    signal: progress.signal,
  });
  if (compressionOf(await head(temporary)) === "none") return temporary;
  throw new CloudletError("INVALID", `base ${base.digest.slice(0, 12)} holds no tar below its ${compression} compression`, {
    fix: "give a tar of a root file system or a unified LXD image",
  });
}

async function head(path: string): Promise<Buffer> {
  const file = await open(path, "r");
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(markerLength), 0, markerLength, 0);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

/** An LXD image has metadata.yaml and rootfs/ at its top, in any order; anything else there means a root file system. */
async function isImage(path: string): Promise<boolean> {
  for await (const { entry } of readTar(createReadStream(path) as AsyncIterable<Buffer>)) {
    const [top] = entry.path.replace(/^(\.?\/)+/, "").split("/");
    if (top === "metadata.yaml") return true;
    if (top !== "" && top !== "." && top !== "rootfs" && top !== "templates") return false;
  }
  return false;
}

/** An image of a base in either form, with a delta over its root file system. */
async function layered(plain: Plain, delta: Blob | undefined): Promise<Readable> {
  const sources: Source[] = [
    ...(plain.unified ? [] : [{ name: "the metadata", open: () => Readable.from(metadata()) as AsyncIterable<Buffer> }]),
    { name: "the base", open: () => createReadStream(plain.path) as AsyncIterable<Buffer>, ...(!plain.unified && { prefix: "rootfs" }) },
  ];
  if (delta !== undefined) {
    const open = () => createReadStream(delta.path) as AsyncIterable<Buffer>;
    sources.push({ name: "the overlay's delta", open, prefix: "rootfs", whiteouts: true, digest: delta.digest });
  }
  return packTree(await readTree(sources), sources);
}

/** What LXD wants to know of a root file system. */
function metadata(): Buffer[] {
  const text = Buffer.from(`architecture: ${lxdArchitecture(process.arch)}\ncreation_date: 1\nproperties:\n  description: cloudlet base\n`);
  const header = headerOf({
    path: "metadata.yaml",
    type: "file",
    mode: 0o644,
    uid: 0,
    gid: 0,
    mtime: 1,
    size: text.length,
    target: "",
    major: 0,
    minor: 0,
    xattrs: {},
  });
  return [header, text, paddingOf(text.length), endOfTar()];
}

async function importImage(rest: Rest, image: { key: string; body: Readable; what: string }, progress: Progress): Promise<string> {
  const hash = createHash("sha256");
  const body = new PassThrough();
  image.body.on("data", (chunk: Buffer) => hash.update(chunk));
  image.body.on("error", (error) => body.destroy(error));
  image.body.pipe(body);
  const { what } = image;
  const headers = { "content-type": "application/octet-stream", "x-lxd-filename": nameOf(image.key) };
  try {
    const operation = await perform(rest, { method: "POST", path: "/1.0/images", headers, body, what }, waitOf(progress, deadlines.image));
    return z.object({ fingerprint: z.string() }).parse(operation?.metadata).fingerprint;
  } catch (error) {
    // the same bytes may be there already as somebody else's image: used, never removed
    if (!(error instanceof CloudletError) || !error.message.includes("already exists")) throw error;
    await finished(body.resume()).catch(() => undefined);
    const fingerprint = hash.digest("hex");
    const present = await find(rest, { method: "GET", path: `/1.0/images/${fingerprint}`, what }, imageSchema);
    if (present === undefined) throw error;
    return fingerprint;
  } finally {
    image.body.destroy();
  }
}
