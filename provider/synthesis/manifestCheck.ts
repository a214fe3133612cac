import { CloudletError } from "../core/errors.ts";
import { imageNames } from "./layerFiles.ts";
import { type Manifest, blockBytes, manifestSchema } from "./manifest.ts";

/** No chunk is larger once decompressed, so that handling one takes bounded memory. */
export const maxChunkBytes = 16 * 1024 * 1024;
// what zstd adds at most to data that does not compress
const maxChunkGrowth = 64 * 1024;
// 64 TiB: beyond it, sizes would leave what the index can count
const maxImageBytes = 2 ** 46;

/** A manifest from its text; refuses one whose numbers contradict each other. */
export function parseManifest(text: string): Manifest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (cause) {
    throw invalid("is not JSON", cause);
  }
  const parsed = manifestSchema.safeParse(value);
  if (!parsed.success) {
    const [issue] = parsed.error.issues;
    throw invalid(`has a wrong ${issue?.path.join(".") || "form"}: ${issue?.message ?? ""}`, parsed.error);
  }
  checkImages(parsed.data);
  checkChunks(parsed.data);
  checkFiles(parsed.data);
  return parsed.data;
}

function checkImages(manifest: Manifest): void {
  for (const name of imageNames) {
    const image = manifest[name];
    if (image === undefined) continue;
    if (image.virtualBytes % blockBytes !== 0 || image.virtualBytes > maxImageBytes) {
      throw invalid(`has a wrong ${name}.virtualBytes: ${String(image.virtualBytes)}`);
    }
    if (image.blocks > image.virtualBytes / blockBytes) {
      throw invalid(`says ${name}.blocks is ${String(image.blocks)}, more than the image has`);
    }
  }
}

/** Chunks fill the pack without gaps, so that none overlaps another or lies outside. */
function checkChunks({ pack }: Manifest): void {
  let end = 0;
  for (const [position, chunk] of pack.chunks.entries()) {
    const name = `pack.chunks.${String(position)}`;
    if (chunk.offset !== end) throw invalid(`says ${name} begins at ${String(chunk.offset)}, but the one before it ends at ${String(end)}`);
    if (chunk.rawBytes > maxChunkBytes) throw invalid(`says ${name} has ${String(chunk.rawBytes)} bytes decompressed, more than allowed`);
    if (chunk.bytes > chunk.rawBytes + maxChunkGrowth)
      throw invalid(`says ${name} has ${String(chunk.bytes)} bytes, more than its content`);
    end += chunk.bytes;
  }
  if (end !== pack.bytes) throw invalid(`says the pack has ${String(pack.bytes)} bytes, but its chunks have ${String(end)}`);
  if (pack.touched > pack.chunks.length) throw invalid(`says ${String(pack.touched)} chunks are touched first, more than there are`);
}

function checkFiles({ files, pack, format, parent }: Manifest): void {
  const seen = new Set<string>();
  const used = new Set<number>();
  for (const file of files) {
    if (file.difference === true && (format !== "cloudlet-overlay/2" || parent === undefined))
      throw invalid(`says the file ${file.name} is a difference, and names no parent for it`);
    if (seen.has(file.name)) throw invalid(`names the file ${file.name} twice`);
    seen.add(file.name);
    let bytes = 0;
    for (const position of file.chunks) {
      const chunk = pack.chunks[position];
      if (chunk === undefined || used.has(position))
        throw invalid(`says the file ${file.name} is in chunk ${String(position)}, which is not its own`);
      used.add(position);
      bytes += chunk.rawBytes;
    }
    if (bytes !== file.bytes)
      throw invalid(`says the file ${file.name} has ${String(file.bytes)} bytes, but its chunks have ${String(bytes)}`);
  }
  for (const [position, chunk] of pack.chunks.entries()) {
    if (!used.has(position) && chunk.rawBytes % blockBytes !== 0) {
      throw invalid(`says pack.chunks.${String(position)} holds ${String(chunk.rawBytes)} bytes, which are no whole blocks`);
    }
  }
}

function invalid(what: string, cause?: unknown): CloudletError {
  return new CloudletError("INVALID", `the overlay's manifest ${what}`, { cause, fix: "build or fetch the overlay again" });
}
