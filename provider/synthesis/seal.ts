import { createHash } from "node:crypto";
import { type FileHandle, mkdir, open, readFile, rm, writeFile } from "node:fs/promises";
import path from "node:path";
import { syncFile } from "../agent/durable.ts";
import { CloudletError } from "../core/errors.ts";
import { type ImageIndex, encodeIndex } from "./blockIndex.ts";
import { BlockTable } from "./blockTable.ts";
import { findDense } from "./density.ts";
import { type ImageName, imageNames } from "./layerFiles.ts";
import { type Manifest, blockBytes } from "./manifest.ts";
import { parseManifest } from "./manifestCheck.ts";
import { orderBlocks, renumber } from "./packPlan.ts";
import { type Differences, type PackContent, writePack } from "./packWriter.ts";
import { ParentLayer, isNear } from "./parentLayer.ts";
import { scanImage } from "./scan.ts";
import type { Progress, Sealed, SealInput, Touch } from "./sealTypes.ts";
import { compressFiles } from "./zstd.ts";

// every start waits for the index
const indexLevel = "-19";

/** Finds what differs from below, leaves out what is there twice, and writes manifest, index and pack into `input.directory`. */
export async function seal(input: SealInput, progress: Progress): Promise<Sealed> {
  checkInput(input);
  const table = new BlockTable();
  const found: Pick<Writing, "images" | "about"> = { images: {}, about: aboutOf(input) };
  const handles: FileHandle[] = [];
  try {
    for (const name of imageNames) {
      const image = input[name];
      if (image === undefined) continue;
      progress.status(`looking for what changed in the ${name}`);
      const { index, digest } = await scanImage(image, { table, source: handles.length }, progress);
      handles.push(await open(image.current, "r"));
      found.images[name] = index;
      found.about[name] = { virtualBytes: image.virtualBytes, digest, blocks: index.blocks.length };
    }
    const { files, directory, touched = [] } = input;
    // what is resumed for a trial first is packed once more afterwards
    const effort = input.memory !== undefined && input.touched === undefined ? "quick" : "small";
    const writing: Writing = { ...found, files, blocks: { handles, ...table.places }, count: table.count, touched, effort };
    return await writeOverlay(writing, directory, progress);
  } finally {
    await Promise.all(handles.map((handle) => handle.close()));
  }
}

/** What an overlay is written from: its blocks, where they can be read, and what its manifest says about them. */
export interface Writing extends Pick<PackContent, "files" | "blocks" | "effort"> {
  about: Omit<Manifest, "format" | "index" | "pack" | "files">;
  images: Partial<Record<ImageName, ImageIndex>>;
  /** How many blocks there are. */
  count: number;
  touched: readonly Touch[];
  /** Directory of the parent's layer: what is nearly the same there is packed as the difference. */
  parentLayer?: string | undefined;
}

/** Writes manifest, index and pack into the directory; when that fails, none of them is there. */
export async function writeOverlay(writing: Writing, directory: string, progress: Progress): Promise<Sealed> {
  const paths = { manifest: path.join(directory, "manifest"), index: path.join(directory, "index"), pack: path.join(directory, "pack") };
  await mkdir(directory, { recursive: true, mode: 0o700 });
  const parent = writing.parentLayer === undefined ? undefined : await ParentLayer.open(writing.parentLayer);
  try {
    const { files, blocks, effort, count, touched } = writing;
    progress.status(`compressing ${String(Math.ceil((count * blockBytes) / 1024 ** 2))} MiB`);
    const differences = parent && (await findDifferences(parent, writing, progress));
    const dense = effort === "small" ? await findDense(blocks, count, progress.signal) : new Uint8Array(count);
    // what is dense in itself need not be as a difference
    for (const [block, marked] of differences?.marked.entries() ?? []) if (marked === 1) dense[block] = 0;
    const ordered = orderBlocks(writing.images, { count, touched, dense });
    const written = await writePack({ files, blocks, effort, differences, ...ordered }, paths.pack, progress);
    const images = renumber(writing.images, ordered.order);
    const marked = differences && Uint8Array.from(ordered.order, (block) => differences.marked[block] ?? 0);
    const index = await writeIndex(paths.index, { images, marked }, progress.signal);
    const format = `cloudlet-overlay/${differences === undefined ? "1" : "2"}`;
    const text = JSON.stringify({ format, ...writing.about, index, ...written });
    const manifest = parseManifest(text);
    await writeFile(paths.manifest, text, { mode: 0o600 });
    await syncFile(paths.manifest);
    const digest = createHash("sha256").update(text).digest("hex");
    const blobs = [
      { digest, path: paths.manifest, bytes: Buffer.byteLength(text) },
      { ...index, path: paths.index },
      { digest: manifest.pack.digest, path: paths.pack, bytes: manifest.pack.bytes },
    ];
    return { digest, manifest, blobs };
  } catch (error) {
    await Promise.all(Object.values(paths).map((file) => rm(file, { force: true })));
    throw error;
  } finally {
    await parent?.close();
  }
}

/** What is nearly the same in the parent. */
async function findDifferences(
  parent: ParentLayer,
  { images, blocks, count, files }: Writing,
  { signal }: Progress,
): Promise<Differences | undefined> {
  if (images.memory === undefined) return undefined;
  const over = parent.over(images.memory, count);
  const near = new Map<string, Buffer>();
  for (const { name, path: file } of files) {
    const before = await parent.file(name);
    if (isNear(await readFile(file), before)) near.set(name, before);
  }
  return { over, marked: await over.near(blocks, signal), files: near };
}

async function writeIndex(
  file: string,
  { images, marked }: { images: Partial<Record<ImageName, ImageIndex>>; marked: Uint8Array | undefined },
  signal: AbortSignal,
): Promise<{ digest: string; bytes: number }> {
  const indexes = imageNames.flatMap((name) => images[name] ?? []);
  await writeFile(file, encodeIndex(indexes, marked), { mode: 0o600 });
  const [compressed = Buffer.alloc(0)] = await compressFiles([file], indexLevel, signal);
  await writeFile(file, compressed);
  await syncFile(file);
  return { digest: createHash("sha256").update(compressed).digest("hex"), bytes: compressed.length };
}

function aboutOf({ kind, base, parent, diskMib, machine, network, ready }: SealInput): Writing["about"] {
  return { kind, base, parent, diskMib, machine, network, ready };
}

function checkInput(input: SealInput): void {
  for (const name of imageNames) {
    const bytes = input[name]?.virtualBytes ?? 0;
    if (bytes % blockBytes !== 0) {
      throw new CloudletError("INVALID", `the ${name} has ${String(bytes)} bytes, which are no whole blocks of ${String(blockBytes)}`, {
        fix: "give it a size in whole MiB",
      });
    }
  }
}
