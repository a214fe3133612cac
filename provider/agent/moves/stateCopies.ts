import { createReadStream } from "node:fs";
import { rename, rm } from "node:fs/promises";
import type { JobContext } from "../jobs.ts";
import { guestOf, imagesOf } from "../instances.ts";
import type { VerbArgs, VerbResult } from "../protocol.ts";
import { run } from "../process.ts";
import type { Services } from "../services.ts";
import { digestOf } from "../store.ts";
import { fetchBlobs } from "../synthesis/fetch.ts";
import { referencedDigests } from "../synthesis/references.ts";
import { decompressFile } from "./compression.ts";
import { commonImages } from "./liveImages.ts";

const packMillis = 10 * 60_000;

/** Makes a blob of what a running guest has of its own, for nodes that it may move to; undefined where it would move stopped. */
export async function copyState(services: Services, id: string, context: JobContext): Promise<VerbResult<"instance.copy">> {
  const record = await services.records.read(id);
  if (record?.ownership.role !== "owner" || record.spec.state !== "running") return {};
  const { live } = await services.hypervisors.driver(record.spec.kind);
  const guest = await guestOf(services, record, await imagesOf(services, record));
  if (live === undefined || "impossible" in (await live.shape(guest))) return {};
  return services.formerCopies.making(id, async (path) => {
    context.status(`copying what ${id} has of its own, for where it may be next`);
    await live.copy(guest, { images: commonImages(services, record, guest), path }, context);
    context.step("copied");
    const packed = `${path}.zst`;
    await run(["zstd", "-3", "-q", "-f", path, "-o", packed], { timeoutMillis: packMillis, signal: context.signal });
    const digest = await digestOf(createReadStream(packed));
    await services.store.adopt(digest, packed);
    context.step("packed");
    return { digest };
  });
}

/** Takes such a blob from where it is offered, at low priority: a guest that comes then brings only what has changed since. */
export async function takeCopy(
  services: Services,
  { id, owner, digest, offers }: VerbArgs<"preseed.copy">,
  context: JobContext,
): Promise<VerbResult<"preseed.copy">> {
  const beganAt = Date.now();
  const path = await services.formerCopies.pathOf(id);
  const fresh = `${path}.taken`;
  try {
    const { bytesTransferred } = await fetchBlobs(services, { digests: [digest], offers, gently: true }, context);
    await decompressFile(await services.store.path(digest), fresh);
    await rename(fresh, path);
    context.step("copyTaken");
    const held = await services.preseeds.read(id, owner);
    if (held?.cost !== undefined) {
      const { cost } = held;
      const total = { bytesTransferred: cost.bytesTransferred + bytesTransferred, totalMillis: cost.totalMillis + Date.now() - beganAt };
      await services.preseeds.write({ ...held, cost: { ...cost, ...total } });
    }
    return { bytesTransferred };
  } finally {
    await rm(fresh, { force: true });
    await services.store.discard([digest], await referencedDigests(services));
  }
}
