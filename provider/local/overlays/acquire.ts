import type { AcquireOptions, LocalBlob, OverlaySource } from "../../core/context.ts";
import { CloudletError } from "../../core/errors.ts";
import { parseReference } from "../registry/reference.ts";
import { openRegistry } from "../registry/registry.ts";
import { openArchive } from "./archive.ts";
import { openArtefact } from "./artefact.ts";
import { describe, openLater, readThrough, type PartSource } from "./parts.ts";

/** An overlay from an archive, which is read through before anything else, or from a registry, whose bytes are compared as they come. */
export async function acquireOverlay(
  source: OverlaySource,
  { digest: expected, ...watch }: AcquireOptions,
): Promise<{ digest: string; blobs: LocalBlob[] }> {
  const found: PartSource =
    "file" in source ? await openArchive(source.file) : await openArtefact(openRegistry(parseReference(source.image), watch));
  const { digest } = await describe(found, watch);
  if (expected !== undefined && digest !== expected)
    throw new CloudletError("INTEGRITY", `${found.label} holds the overlay ${digest}, and ${expected} is expected`, {
      fix: "correct the digest or the source",
    });
  if ("file" in source) await readThrough(found, watch);
  const blobs = found.parts.map((part) => ({
    digest: part.digest,
    bytes: part.bytes,
    stream: () => openLater(found, part, watch),
  }));
  // a node has an overlay once it has the manifest, so that comes last
  return { digest, blobs: blobs.reverse() };
}
