import { blockBytes } from "../../synthesis/manifest.ts";
import type { Manifest } from "../../synthesis/manifest.ts";
import type { JobContext } from "../jobs.ts";
import type { OverlayStatus, VerbArgs, VerbResult } from "../protocol.ts";
import type { Services } from "../services.ts";
import type { KeptOverlay } from "./kept.ts";
import { blobsOf, collectLayers, referencedDigests } from "./references.ts";

type Resources = OverlayStatus["resources"];
/** What an overlay that was built here is known by, beside its content. */
export interface Built {
  makings: string;
  resources: Resources;
  buildMillis: number;
}

/** Keeps an overlay whose blobs are in the store for an owner. Where its base is here too, it is recombined at once, so that a cloudlet of it starts from what is local. */
export async function keepOverlay(
  services: Services,
  { built, ...args }: VerbArgs<"overlay.keep"> & { built?: Built },
  context: JobContext,
): Promise<OverlayStatus> {
  const { name, owner, digest } = args;
  const manifest = await services.layers.read(digest);
  // each blob is compared with its digest before anybody relies on it
  await services.layers.requireAll(digest);
  context.step("checked");
  const before = await services.overlays.read(name, owner);
  const known = before?.digest === digest ? before : undefined;
  const kept: KeptOverlay = { ...known, ...overlayStatus(digest, manifest, built), ...(built && { makings: built.makings }), name, owner };
  await services.overlays.write(kept);
  context.step("kept");
  if (await services.store.has(manifest.base)) await services.layers.make(digest, context);
  context.step("recombined");
  if (before !== undefined && before.digest !== digest) await forget(services, before.digest);
  return statusOf(kept);
}

export async function releaseOverlay(services: Services, { name, owner }: VerbArgs<"overlay.release">, context: JobContext): Promise<void> {
  const kept = await services.overlays.read(name, owner);
  if (kept === undefined) return;
  await services.overlays.remove(name, owner);
  context.step("released");
  await forget(services, kept.digest);
  context.step("collected");
}

export async function verifyOverlay(
  services: Services,
  { digest }: VerbArgs<"overlay.verify">,
  context: JobContext,
): Promise<VerbResult<"overlay.verify">> {
  await services.layers.requireAll(digest);
  context.status(`comparing overlay ${digest.slice(0, 12)} with its digests`);
  return { bytes: await services.layers.verify(digest, context) };
}

/** undefined where its blobs are gone, whatever is written down. */
export async function keptOverlayStatus(services: Services, name: string, owner: string): Promise<OverlayStatus | undefined> {
  const kept = await services.overlays.read(name, owner);
  return kept === undefined || !(await services.store.has(kept.digest)) ? undefined : statusOf(kept);
}

function statusOf({ name: _name, owner: _owner, makings: _makings, ...status }: KeptOverlay): OverlayStatus {
  return status;
}

function overlayStatus(digest: string, manifest: Manifest, built: Built | undefined): OverlayStatus {
  const { kind, base, parent, machine, diskMib, index, pack, disk, memory } = manifest;
  const { cores, memoryMib } = machine ?? built?.resources ?? { cores: 1, memoryMib: 1 };
  return {
    digest,
    kind,
    base,
    ...(parent !== undefined && { parent }),
    resources: { cores, memoryMib, diskMib },
    ...(machine && { machine }),
    bytes: index.bytes + pack.bytes,
    diskBytes: (disk?.blocks ?? 0) * blockBytes,
    memoryBytes: (memory?.blocks ?? 0) * blockBytes,
    ...(built && { buildMillis: built.buildMillis }),
  };
}

/** Its layers, and its own blobs; a base stays until its owner releases it, or nobody has used it for long. */
async function forget(services: Services, digest: string): Promise<void> {
  const blobs = await blobsOf(services, digest);
  await collectLayers(services);
  await services.store.discard(blobs, await referencedDigests(services));
}

/** The overlay that was built here from the same makings, if it is still here. */
export async function builtBefore(services: Services, makings: string): Promise<KeptOverlay | undefined> {
  for (const kept of await services.overlays.list()) {
    if (
      kept.makings === makings &&
      (await services.layers.requireAll(kept.digest).then(
        () => true,
        () => false,
      ))
    )
      return kept;
  }
  return undefined;
}
