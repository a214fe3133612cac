import { createHash } from "node:crypto";
import { open } from "node:fs/promises";
import { CloudletError } from "../core/errors.ts";
import type { ImageName } from "./layerFiles.ts";
import type { Manifest } from "./manifest.ts";
import type { Progress } from "./sealTypes.ts";

const mib = 1024 * 1024;
const readBytes = 4 * mib;
const zeros = Buffer.alloc(mib);
const zeroDigest = createHash("sha256").update(zeros).digest();

/** SHA-256 over the SHA-256 of each MiB (the last one may be shorter); what lies beyond the file's end counts as zeros. */
export async function imageDigest(file: string, options: { virtualBytes: number; signal?: AbortSignal }): Promise<string> {
  const digest = new ImageHash();
  const handle = await open(file, "r");
  const buffer = Buffer.alloc(readBytes);
  try {
    for (let offset = 0; offset < options.virtualBytes; offset += readBytes) {
      options.signal?.throwIfAborted();
      const length = Math.min(readBytes, options.virtualBytes - offset);
      const { bytesRead } = await handle.read(buffer, 0, length, offset);
      buffer.fill(0, bytesRead, length);
      digest.update(buffer.subarray(0, length));
    }
  } finally {
    await handle.close();
  }
  return digest.done();
}

/** The digest of an image that is read from its beginning to its end, in pieces of whole MiB. */
export class ImageHash {
  readonly #whole = createHash("sha256");

  update(piece: Buffer): void {
    for (let offset = 0; offset < piece.length; offset += mib) {
      const part = piece.subarray(offset, offset + mib);
      const isZero = part.length === mib && part.equals(zeros);
      this.#whole.update(isZero ? zeroDigest : createHash("sha256").update(part).digest());
    }
  }

  done(): string {
    return this.#whole.digest("hex");
  }
}

/** Compares recombined images, readable as raw bytes, with what the overlay was sealed with. */
export async function verifyImages(manifest: Manifest, raw: Partial<Record<ImageName, string>>, progress: Progress): Promise<void> {
  for (const name of ["disk", "memory"] as const) {
    const file = raw[name];
    const image = manifest[name];
    if (file === undefined || image === undefined) continue;
    progress.status(`comparing the ${name} with its digest`);
    const found = await imageDigest(file, { virtualBytes: image.virtualBytes, signal: progress.signal });
    if (found !== image.digest) {
      throw new CloudletError("INTEGRITY", `the recombined ${name} has the digest ${found} where ${image.digest} is expected`);
    }
  }
}
