import { createHash } from "node:crypto";
import { readFile, stat } from "node:fs/promises";
import { CloudletError } from "../core/errors.ts";
import { type ImageIndex, decodeIndex, maxIndexBytes } from "./blockIndex.ts";
import { type ImageName, imageNames } from "./layerFiles.ts";
import { type Manifest, blockBytes, maxManifestBytes } from "./manifest.ts";
import { parseManifest } from "./manifestCheck.ts";
import { decompress } from "./zstd.ts";

/** A run of the pack's blocks: the content of one chunk. */
export interface BlockChunk {
  /** Its position in `pack.chunks`. */
  chunk: number;
  /** Its first block, counted over the pack. */
  first: number;
  blocks: number;
}

/** An overlay's manifest and index, read and checked: every number in them may be relied upon. */
export interface OverlayIndex {
  digest: string;
  manifest: Manifest;
  images: Partial<Record<ImageName, ImageIndex>>;
  blockChunks: BlockChunk[];
  /** 1 for each block of the pack that is a difference from what the parent's memory has there. */
  differences: Uint8Array;
}

/** Where an overlay's manifest and index are; `digest` is what the manifest must have. */
export interface OverlayPaths {
  digest: string;
  manifest: string;
  index: string;
}

/** Reads and checks: digests first, then every number against its bounds. */
export async function readOverlay(paths: OverlayPaths): Promise<OverlayIndex> {
  const text = await readVerified(paths.manifest, { part: "manifest", digest: paths.digest, maxBytes: maxManifestBytes });
  const manifest = parseManifest(text.toString("utf8"));
  const packed = await readVerified(paths.index, { part: "index", ...manifest.index, maxBytes: manifest.index.bytes });
  const names = imageNames.filter((name) => manifest[name] !== undefined);
  const blocks = names.reduce((sum, name) => sum + (manifest[name]?.blocks ?? 0), 0);
  const raw = await decompress(packed, { part: "index", maxBytes: maxIndexBytes(blocks) });
  const blockChunks = blockChunksOf(manifest);
  const last = blockChunks.at(-1);
  const { images: decoded, differences } = decodeIndex(raw, {
    images: names.map((name) => ({
      name,
      blocks: manifest[name]?.blocks ?? 0,
      blocksOfImage: (manifest[name]?.virtualBytes ?? 0) / blockBytes,
    })),
    storedBlocks: last === undefined ? 0 : last.first + last.blocks,
  });
  const images = Object.fromEntries(names.map((name, position) => [name, decoded[position]]));
  const mayDiffer = manifest.format === "cloudlet-overlay/2" && manifest.parent !== undefined;
  if (differences.includes(1) && !mayDiffer) throw damaged("index", "has differences, and the manifest no parent for them");
  return { digest: paths.digest, manifest, images, blockChunks, differences };
}

/** The chunks that belong to no file hold blocks, in the order of the pack. */
function blockChunksOf({ files, pack }: Manifest): BlockChunk[] {
  const ofFiles = new Set(files.flatMap(({ chunks }) => chunks));
  let first = 0;
  const found: BlockChunk[] = [];
  for (const [chunk, { rawBytes }] of pack.chunks.entries()) {
    if (ofFiles.has(chunk)) continue;
    const blocks = rawBytes / blockBytes;
    found.push({ chunk, first, blocks });
    first += blocks;
  }
  return found;
}

interface Expected {
  part: string;
  digest: string;
  bytes?: number;
  maxBytes: number;
}

async function readVerified(file: string, { part, digest, bytes, maxBytes }: Expected): Promise<Buffer> {
  const { size } = await stat(file);
  if (size > maxBytes || (bytes !== undefined && size !== bytes)) {
    throw damaged(part, `has ${String(size)} bytes where ${bytes === undefined ? "fewer" : String(bytes)} are expected`);
  }
  const content = await readFile(file);
  const found = createHash("sha256").update(content).digest("hex");
  if (found !== digest) throw damaged(part, `has the digest ${found} where ${digest} is expected`);
  return content;
}

function damaged(part: string, what: string): CloudletError {
  return new CloudletError("INTEGRITY", `the overlay's ${part} ${what}`);
}
