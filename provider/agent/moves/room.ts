import { z } from "zod";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Opened } from "../instances.ts";
import type { Services } from "../services.ts";
import { rawBytes } from "../synthesis/layers.ts";
import { blobsOf, manifestOf } from "../synthesis/references.ts";
import type { MoveChannel } from "./channel.ts";
import type { Arrival } from "./wire.ts";

/** Whether the target's disk has room for a guest that is to move while it runs, asked before anything is sent. */
export async function requireRoom(
  services: Services,
  { record, driver, guest }: Opened,
  { channel, arrival }: { channel: MoveChannel; arrival: Arrival },
): Promise<void> {
  if (driver.live === undefined) return;
  const bytes = (await driver.live.diskBytes(guest)) + (await imageBytes(services, arrival.needs));
  try {
    await channel.json(z.object({}), { method: "POST", path: "/v1/room", body: { bytes } });
  } catch (error) {
    // an older agent does not know the question
    if (codeOf(error) === "NOT_FOUND") return;
    if (!(error instanceof CloudletError) || error.code !== "REFUSED") throw error;
    throw new CloudletError("REFUSED", `${record.spec.id} was not moved: ${error.message}`, { fix: error.fix });
  }
}

/** Of what the target's store lacks, and of overlays in the form that guests stand on. */
async function imageBytes(services: Services, needs: readonly string[]): Promise<number> {
  const missing = new Set<string>();
  let bytes = 0;
  for (const digest of needs) {
    for (const blob of await blobsOf(services, digest)) missing.add(blob);
    const manifest = await manifestOf(services, digest);
    if (manifest !== undefined) bytes += rawBytes(manifest);
  }
  for (const digest of missing) bytes += await services.store.bytes(digest);
  return bytes;
}
