import { open } from "node:fs/promises";
import { manifestSchema, maxManifestBytes } from "../../synthesis/manifest.ts";
import type { Manifest } from "../../synthesis/manifest.ts";
import { readJson } from "../durable.ts";
import { isHere } from "../protocol.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";

type Parts = Pick<Services, "store" | "records" | "builds" | "images" | "overlays" | "preseeds" | "offers">;

/** Digests that something on this node needs: cloudlets, here or likely to come, what is kept, what is offered to others. */
export async function referencedDigests(services: Parts): Promise<Set<string>> {
  const references = new Set<string>();
  for (const { spec, builtFrom, builtOver, synthesis } of await guestsOf(services)) {
    for (const digest of [spec.base.digest, spec.build?.digest, builtFrom]) if (digest !== undefined) references.add(digest);
    for (const digest of [spec.overlay?.digest, builtOver, synthesis?.overlay])
      if (digest !== undefined) await addOverlay(services, digest, references);
  }
  for (const { digest } of await services.images.list()) references.add(digest);
  for (const { digest } of await services.overlays.list()) await addOverlay(services, digest, references);
  for (const { base, build, overlay } of await services.preseeds.list()) {
    for (const digest of [base, build]) if (digest !== undefined) references.add(digest);
    if (overlay !== undefined) await addOverlay(services, overlay, references);
  }
  for (const { digests } of await services.offers.active()) for (const digest of digests) references.add(digest);
  return references;
}

/** Overlays whose recombined form something on this node stands on. */
export async function referencedLayers(services: Parts): Promise<Set<string>> {
  const layers = new Set<string>();
  const add = async (digest: string | undefined): Promise<void> => {
    if (digest === undefined || layers.has(digest)) return;
    layers.add(digest);
    await add((await manifestOf(services, digest))?.parent);
  };
  for (const { spec, builtOver, synthesis } of await guestsOf(services))
    for (const digest of [spec.overlay?.digest, builtOver, synthesis?.overlay]) await add(digest);
  for (const { digest } of await services.overlays.list()) await add(digest);
  for (const { overlay } of await services.preseeds.list()) await add(overlay);
  return layers;
}

/** Removes the layers that nothing stands on. */
export async function collectLayers(services: Parts & Pick<Services, "layers" | "lock">): Promise<void> {
  // no cloudlet is claimed between looking and removing
  await services.lock.run("hypervisor", async () => services.layers.collect(await referencedLayers(services)));
}

/** What an overlay's digest stands for: all blobs of it and of the one that it stands on, without the base image. Of anything else, itself. */
export async function blobsOf(services: Pick<Services, "store">, digest: string): Promise<string[]> {
  const manifest = await manifestOf(services, digest);
  if (manifest === undefined) return [digest];
  const below = manifest.parent === undefined ? [] : await blobsOf(services, manifest.parent);
  return [digest, manifest.index.digest, manifest.pack.digest, ...below];
}

/** undefined where the manifest is not here, or is none: what cannot be read refers to nothing. */
export async function manifestOf({ store }: Pick<Services, "store">, digest: string): Promise<Manifest | undefined> {
  if (!(await store.has(digest)) || (await store.bytes(digest)) > maxManifestBytes) return undefined;
  const file = await store.path(digest);
  // most of what is asked about is an image, and large
  return (await beginsWithBrace(file)) ? readJson(file, manifestSchema).catch(() => undefined) : undefined;
}

async function guestsOf({ records, builds }: Parts): Promise<InstanceRecord[]> {
  return [...(await records.list()).filter(isHere), ...(await builds.list())];
}

async function beginsWithBrace(file: string): Promise<boolean> {
  const handle = await open(file, "r");
  try {
    const { bytesRead, buffer } = await handle.read(Buffer.alloc(1), 0, 1, 0);
    return bytesRead === 1 && buffer[0] === 0x7b;
  } finally {
    await handle.close();
  }
}

async function addOverlay(services: Pick<Services, "store">, digest: string, references: Set<string>): Promise<void> {
  if (references.has(digest)) return;
  references.add(digest);
  const manifest = await manifestOf(services, digest);
  if (manifest === undefined) return;
  for (const part of [manifest.base, manifest.index.digest, manifest.pack.digest]) references.add(part);
  if (manifest.parent !== undefined) await addOverlay(services, manifest.parent, references);
}
