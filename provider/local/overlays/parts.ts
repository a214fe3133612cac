import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { pipeline } from "node:stream/promises";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Manifest } from "../../synthesis/manifest.ts";
import { readOverlay } from "../../synthesis/overlay.ts";

/** Everything that can travel with an overlay, in the order in which it does; `parent` is the base's own memory. */
export const partNames = ["manifest.json", "index", "pack", "parent/manifest.json", "parent/index", "parent/pack", "base"] as const;
export type PartName = (typeof partNames)[number];

export interface Part {
  name: PartName;
  digest: string;
  bytes: number;
}

/** Where an overlay can be had from: a node, an archive, a registry. */
export interface PartSource {
  readonly label: string;
  readonly parts: readonly Part[];
  /** The bytes as they come; `open` of this file compares them. */
  read(part: Part): Promise<Readable>;
}

export interface Watch {
  signal: AbortSignal;
  status(text: string): void;
}

/** An overlay whose manifest and index have been read and checked. */
export interface Described {
  /** Of its manifest: its identity. */
  digest: string;
  manifest: Manifest;
}

// a manifest with more would describe an overlay of terabytes
const textLimit = 64 * 1024 * 1024;

/** A part's bytes, that end with INTEGRITY and the part's name where they are not what was announced. */
export async function open(source: PartSource, part: Part, watch: Watch): Promise<Readable> {
  const raw = await source.read(part).catch((error: unknown) => {
    throw named(source, part, error);
  });
  return Readable.from(checked(raw, { source, part, watch }), { objectMode: false });
}

/** The same for those who need the stream at once. */
export function openLater(source: PartSource, part: Part, watch: Watch): Readable {
  const bytes = async function* (): AsyncGenerator<Buffer> {
    yield* (await open(source, part, watch)) as AsyncIterable<Buffer>;
  };
  return Readable.from(bytes(), { objectMode: false });
}

/** Reads manifest and index, of the base's memory as well where that comes along, and checks that all parts belong together. */
export async function describe(source: PartSource, watch: Watch): Promise<Described> {
  const folder = await mkdtemp(join(tmpdir(), "cloudlet-overlay-"));
  try {
    const described = await describeOne(source, { folder, below: "", watch });
    const { base, parent } = described.manifest;
    const hasParent = source.parts.some(({ name }) => name === "parent/manifest.json");
    if (hasParent) {
      const below = await describeOne(source, { folder, below: "parent/", watch });
      mustBe(source, "parent/manifest.json", { found: below.digest, expected: parent });
      mustBe(source, "base", { found: below.manifest.base, expected: base });
    }
    const given = source.parts.find(({ name }) => name === "base");
    if (given) mustBe(source, "base", { found: given.digest, expected: base });
    return described;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}

/** Reads every part to its end and keeps nothing. */
export async function readThrough(source: PartSource, watch: Watch): Promise<void> {
  for (const part of source.parts) for await (const _ of await open(source, part, watch));
}

export function partOf(source: PartSource, name: PartName): Part {
  const part = source.parts.find((it) => it.name === name);
  if (part === undefined)
    throw new CloudletError("INTEGRITY", `${source.label} has no part ${name}`, { fix: "export or push the overlay again" });
  return part;
}

export function sizeText(bytes: number): string {
  return bytes < 1024 * 1024 ? `${(bytes / 1024).toFixed(1)} KiB` : `${(bytes / 1024 / 1024).toFixed(1)} MiB`;
}

interface Place {
  folder: string;
  below: "" | "parent/";
  watch: Watch;
}

async function describeOne(source: PartSource, { folder, below, watch }: Place): Promise<Described> {
  const files = { manifest: join(folder, "manifest"), index: join(folder, "index") };
  const manifestPart = partOf(source, `${below}manifest.json`);
  await fetchText(source, manifestPart, { file: files.manifest, watch });
  await fetchText(source, partOf(source, `${below}index`), { file: files.index, watch });
  const { digest, manifest } = await readOverlay({ digest: manifestPart.digest, ...files }).catch((error: unknown) => {
    throw error instanceof CloudletError ? within(source, below, error) : error;
  });
  for (const name of ["index", "pack"] as const)
    mustBe(source, `${below}${name}`, { found: partOf(source, `${below}${name}`).digest, expected: manifest[name].digest });
  return { digest, manifest };
}

async function fetchText(source: PartSource, part: Part, { file, watch }: { file: string; watch: Watch }): Promise<void> {
  if (part.bytes > textLimit)
    throw new CloudletError("INVALID", `${part.name} of ${source.label} has ${sizeText(part.bytes)}, more than any may have`);
  await pipeline(await open(source, part, watch), createWriteStream(file), { signal: watch.signal });
}

function mustBe(source: PartSource, name: PartName, { found, expected }: { found: string; expected: string | undefined }): void {
  if (found === expected) return;
  throw new CloudletError(
    "INTEGRITY",
    `${name} of ${source.label} belongs to another overlay: its digest is ${found}, ${expected ?? "none"} is needed`,
    {
      fix: "export or push the overlay again",
    },
  );
}

async function* checked(raw: Readable, { source, part, watch }: { source: PartSource; part: Part; watch: Watch }): AsyncGenerator<Buffer> {
  const hash = createHash("sha256");
  let bytes = 0;
  try {
    for await (const chunk of raw as AsyncIterable<Buffer>) {
      if (watch.signal.aborted) throw new CloudletError("ABORTED", `${part.name} of ${source.label} was not finished`);
      bytes += chunk.length;
      if (bytes > part.bytes) break;
      hash.update(chunk);
      watch.status(`${part.name}: ${sizeText(bytes)} of ${sizeText(part.bytes)}`);
      yield chunk;
    }
  } catch (error) {
    throw named(source, part, error);
  } finally {
    raw.destroy();
  }
  const found = hash.digest("hex");
  if (bytes === part.bytes && found === part.digest) return;
  const size = bytes > part.bytes ? `more than its ${String(part.bytes)} bytes` : `${String(bytes)} of its ${String(part.bytes)} bytes`;
  throw damaged(source, part, { why: bytes === part.bytes ? `its digest is ${found}` : `it has ${size}` });
}

/** What is wrong inside of a manifest or an index is told with the place where these are. */
function within(source: PartSource, below: string, error: CloudletError): CloudletError {
  const where = below === "" ? source.label : `${source.label}, ${below}`;
  return new CloudletError(error.code, `${where}: ${error.message}`, { fix: error.fix, cause: error });
}

/** Damage that was noticed further below is told with the part's name, too. */
function named(source: PartSource, part: Part, error: unknown): unknown {
  if (codeOf(error) !== "INTEGRITY" || !(error instanceof Error)) return error;
  return damaged(source, part, { why: error.message, cause: error });
}

function damaged(source: PartSource, part: Part, { why, cause }: { why: string; cause?: unknown }): CloudletError {
  return new CloudletError("INTEGRITY", `${part.name} of ${source.label} is damaged: ${why}`, {
    fix: "export or push the overlay again",
    cause,
  });
}
