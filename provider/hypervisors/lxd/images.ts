import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { mkdir, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { PassThrough, Readable } from "node:stream";
import { finished } from "node:stream/promises";
import { pack } from "tar-stream";
import { z } from "zod";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Progress } from "../types.ts";
import { ask, find } from "./client.ts";
import { keys } from "./mapping.ts";
import { deadlines, perform, waitOf } from "./operations.ts";
import { addEntry, asError, readTar } from "./tarStreams.ts";

// trap: LXD 5.0 ends with a panic when an upload names properties and its metadata.yaml has none, so the file name says what it is
const nameOf = (digest: string) => `cloudlet-${digest}.tar`;
const markerLength = 262;

export interface Base {
  digest: string;
  path: string;
}

const imageSchema = z.object({ fingerprint: z.string(), filename: z.string() });

/** Fingerprint of the image made from a base; imported on first use. `directory` is for temporary files. */
export async function ensureImage(rest: Rest, base: Base & { directory: string }, progress: Progress): Promise<string> {
  const known = (await images(rest, progress.signal)).find((image) => image.filename === nameOf(base.digest));
  if (known !== undefined) return known.fingerprint;
  progress.status(`importing base ${base.digest.slice(0, 12)} into LXD`);
  await mkdir(base.directory, { recursive: true });
  const plain = await decompressed(base, progress);
  try {
    const body = (await isImage(plain)) ? createReadStream(plain) : wrapped(plain);
    return await importImage(rest, { digest: base.digest, body }, progress);
  } finally {
    if (plain !== base.path) await rm(plain, { force: true });
  }
}

/** Removes the image of a base once no guest of ours is made from it. */
export async function releaseImage(rest: Rest, digest: string, progress: Progress): Promise<void> {
  const instances = await ask(
    rest,
    { method: "GET", path: "/1.0/instances?recursion=1", what: "list instances", signal: progress.signal },
    z.array(z.object({ config: z.record(z.string(), z.string()) })),
  );
  if (instances.some((instance) => instance.config[keys.base] === digest)) return;
  await removeImages(rest, (found) => found === digest, progress);
}

export async function removeImages(rest: Rest, which: (digest: string) => boolean, progress: Progress): Promise<void> {
  for (const image of await images(rest, progress.signal)) {
    const digest = /^cloudlet-([0-9a-f]{64})\.tar$/.exec(image.filename)?.[1];
    if (digest === undefined || !which(digest)) continue;
    await perform(
      rest,
      { method: "DELETE", path: `/1.0/images/${image.fingerprint}`, what: `remove the image of base ${digest.slice(0, 12)}` },
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

async function decompressed(base: Base & { directory: string }, progress: Progress): Promise<string> {
  const compression = compressionOf(await head(base.path));
  if (compression === "none") return base.path;
  if (compression === undefined) {
    throw new CloudletError("INVALID", `base ${base.digest.slice(0, 12)} is not a tar, so it cannot be a container's base`, {
      fix: "give a tar of a root file system or a unified LXD image (tar, also gzip, xz, zstd)",
    });
  }
  const plain = join(base.directory, `${base.digest}.tar`);
  await run(["sh", "-c", `exec ${compression} -dc <"$1" >"$2"`, "sh", base.path, plain], {
    timeoutMillis: deadlines.image,
    signal: progress.signal,
  });
  if (compressionOf(await head(plain)) === "none") return plain;
  await rm(plain, { force: true });
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
  for await (const entry of readTar(createReadStream(path))) {
    const [top] = entry.header.name.replace(/^(\.?\/)+/, "").split("/");
    entry.resume();
    if (top === "metadata.yaml") return true;
    if (top !== "" && top !== "." && top !== "rootfs" && top !== "templates") return false;
  }
  return false;
}

/** A root file system below rootfs/, with the metadata that LXD wants. */
function wrapped(path: string): Readable {
  const image = pack();
  const metadata = `architecture: ${lxdArchitecture(process.arch)}\ncreation_date: 1\nproperties:\n  description: cloudlet base\n`;
  const fill = async () => {
    image.entry({ name: "metadata.yaml", mode: 0o644, mtime: new Date(1000) }, metadata);
    for await (const entry of readTar(createReadStream(path))) {
      const { pax: _, ...header } = { pax: undefined, ...entry.header };
      const inside = (name: string) => `rootfs/${name.replace(/^(\.?\/)+/, "")}`;
      const linkname = header.type === "link" && typeof header.linkname === "string" ? inside(header.linkname) : header.linkname;
      await addEntry(
        image,
        { ...header, ...extended(entry.header), name: inside(header.name), linkname },
        header.type === "file" ? entry : undefined,
      );
      entry.resume();
    }
    image.finalize();
  };
  fill().catch((error: unknown) => image.destroy(asError(error)));
  return Readable.from(image);
}

/** Extended attributes (capabilities of files) travel in pax records; names and sizes there would contradict the new header. */
function extended(header: object): { pax?: Record<string, string> } {
  if (!("pax" in header) || typeof header.pax !== "object" || header.pax === null) return {};
  const kept = Object.entries(header.pax).filter(
    (pair): pair is [string, string] => pair[0].startsWith("SCHILY.xattr.") && typeof pair[1] === "string",
  );
  return kept.length === 0 ? {} : { pax: Object.fromEntries(kept) };
}

async function importImage(rest: Rest, image: { digest: string; body: Readable }, progress: Progress): Promise<string> {
  const hash = createHash("sha256");
  const body = new PassThrough();
  image.body.on("data", (chunk: Buffer) => hash.update(chunk));
  image.body.on("error", (error) => body.destroy(error));
  image.body.pipe(body);
  const what = `import base ${image.digest.slice(0, 12)}`;
  const headers = { "content-type": "application/octet-stream", "x-lxd-filename": nameOf(image.digest) };
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
