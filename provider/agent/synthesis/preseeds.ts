import { isDeepStrictEqual } from "node:util";
import type { JobContext } from "../jobs.ts";
import type { PreseedStatus, VerbArgs, VerbResult } from "../protocol.ts";
import type { Services } from "../services.ts";
import { fetchBlobs } from "./fetch.ts";
import type { KeptPreseed } from "./kept.ts";
import { blobsOf, collectLayers, referencedDigests } from "./references.ts";

type Held = Omit<KeptPreseed, "cost">;

/** Holds what a cloudlet needs here should it come, and takes what is missing of it, slowly. */
export async function applyPreseed(
  services: Services,
  { id: name, offers, ...rest }: VerbArgs<"preseed.apply">,
  context: JobContext,
): Promise<VerbResult<"preseed.apply">> {
  const hasCopy = await services.formerCopies.has(name);
  const held: Held = { name, ...rest };
  const before = await services.preseeds.read(name, held.owner);
  const same = before !== undefined && isDeepStrictEqual(partsOf(before), partsOf(held));
  if (same && before.cost !== undefined && (await isWhole(services, held))) return { ...before.cost, hasCopy };
  // written down first, so that nothing of it is collected while the rest is coming
  await services.preseeds.write(held);
  context.step("held");
  try {
    const cost = await bring(services, { held, offers }, context);
    await services.preseeds.write({ ...held, cost });
    return { ...cost, hasCopy };
  } catch (error) {
    // nobody would release it; what has come stays for a day, for the next attempt
    await services.preseeds.remove(name, held.owner);
    throw error;
  } finally {
    if (before !== undefined && !same) await forget(services, before);
  }
}

export async function releasePreseed(services: Services, { id, owner }: VerbArgs<"preseed.release">, context: JobContext): Promise<void> {
  const held = await services.preseeds.read(id, owner);
  if (held === undefined) return;
  await services.preseeds.remove(id, owner);
  await services.formerCopies.remove(id);
  context.step("released");
  await forget(services, held);
  context.step("collected");
}

/** undefined where any of it is missing. */
export async function preseedStatus(services: Services, id: string, owner: string): Promise<PreseedStatus | undefined> {
  const held = await services.preseeds.read(id, owner);
  return held?.cost !== undefined && (await isWhole(services, held)) ? held.cost : undefined;
}

/** Those that an agent that was killed has left half-way. Before anything else runs. */
export async function forgetUnfinished(services: Services): Promise<void> {
  for (const { name, owner, cost } of await services.preseeds.list()) if (cost === undefined) await services.preseeds.remove(name, owner);
}

async function bring(
  services: Services,
  { held, offers }: { held: Held; offers: VerbArgs<"preseed.apply">["offers"] },
  context: JobContext,
): Promise<PreseedStatus> {
  const beganAt = Date.now();
  const { overlay } = held;
  const { bytesTransferred, bytesAvoided } = await fetchBlobs(services, { digests: partsOf(held), offers, gently: true }, context);
  context.step("fetched");
  if (overlay !== undefined) {
    // each blob is compared with its digest before anybody relies on it
    await services.layers.requireAll(overlay);
    await services.layers.make(overlay, context);
  }
  context.step("recombined");
  return { bytesTransferred, bytesAvoided, totalMillis: Date.now() - beganAt };
}

function partsOf({ base, build, overlay }: Held): string[] {
  return [base, build, overlay].flatMap((digest) => digest ?? []);
}

async function isWhole(services: Services, held: Held): Promise<boolean> {
  for (const part of partsOf(held))
    for (const digest of await blobsOf(services, part)) if (!(await services.store.has(digest))) return false;
  return held.overlay === undefined || services.layers.isWhole(held.overlay);
}

async function forget(services: Services, held: Held): Promise<void> {
  const blobs: string[] = [];
  for (const part of partsOf(held)) blobs.push(...(await blobsOf(services, part)));
  await collectLayers(services);
  await services.store.discard(blobs, await referencedDigests(services));
}
