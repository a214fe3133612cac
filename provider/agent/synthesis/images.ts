import { CloudletError } from "../../core/errors.ts";
import type { JobContext } from "../jobs.ts";
import type { ImageStatus, VerbArgs } from "../protocol.ts";
import type { Services } from "../services.ts";
import { detectImage } from "./imageFormat.ts";
import { referencedDigests } from "./references.ts";

/** Keeps an image for an owner; one that is no image, or not all of one, is refused and not kept. */
export async function keepImage(services: Services, args: VerbArgs<"image.keep">, context: JobContext): Promise<ImageStatus> {
  const { name, owner, digest, arrival } = args;
  const before = await services.images.read(name, owner);
  if (before?.digest !== digest) {
    const file = await services.store.path(digest);
    context.status(`looking into image ${name}`);
    const facts = await detectImage(services.run, file, context.signal);
    await services.images.write({ name, owner, digest, bytes: await services.store.bytes(digest), ...facts, ...(arrival && { arrival }) });
    if (before !== undefined) await services.store.discard([before.digest], await referencedDigests(services));
  } else if (arrival !== undefined) await services.images.write({ ...before, arrival });
  context.step("kept");
  const status = await imageStatus(services, name, owner);
  if (status === undefined) throw new CloudletError("BUG", `image ${name} was kept and cannot be read back`);
  return status;
}

export async function releaseImage(services: Services, { name, owner }: VerbArgs<"image.release">, context: JobContext): Promise<void> {
  const kept = await services.images.read(name, owner);
  if (kept === undefined) return;
  await services.images.remove(name, owner);
  context.step("released");
  await services.store.discard([kept.digest], await referencedDigests(services));
  context.step("collected");
}

export async function imageStatus(services: Services, name: string, owner: string): Promise<ImageStatus | undefined> {
  const kept = await services.images.read(name, owner);
  if (kept === undefined || !(await services.store.has(kept.digest))) return undefined;
  const { name: _name, owner: _owner, ...facts } = kept;
  const { digest } = facts;
  const owners = (await services.images.list()).filter((other) => other.digest === digest).map((other) => other.owner);
  return { ...facts, owners: [...new Set(owners)].sort() };
}
