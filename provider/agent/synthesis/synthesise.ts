import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../../core/errors.ts";
import { layerFiles } from "../../synthesis/layerFiles.ts";
import type { Progress } from "../../hypervisors/types.ts";
import { guestOf, imagesOf } from "../instances.ts";
import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { Provision } from "../protocol.ts";
import type { InstanceRecord, SynthesisRecord } from "../records.ts";
import type { Services } from "../services.ts";
import type { Prepared } from "./prepare.ts";
import { collectLayers } from "./references.ts";

const lookMillis = 200;

/** Makes a guest that is not there from its overlay: resumed and running, or stopped where it boots. Run again after a crash it begins anew, as the guest has not answered yet. */
export async function synthesise(
  services: Services,
  { record, driver, guest }: Opened,
  { prepared, context }: { prepared: Prepared; context: JobContext },
): Promise<InstanceRecord> {
  const { id, overlay, base } = record.spec;
  if (overlay === undefined) throw new CloudletError("BUG", `cloudlet ${id} has no overlay to be made from`);
  const lazy = prepared.rung === "lazy";
  // an agent that has just come back may be about to start what an earlier attempt has left
  await services.hydrations.end(id);
  const synthesis = synthesisOf(overlay.digest, prepared);
  const { provision: _, ...rest } = record;
  // known before the guest is there: a crash must not leave one of unknown origin
  await services.records.write({ ...rest, builtFrom: base.digest, builtOver: overlay.digest, synthesis });
  context.step("planned");
  if (lazy) {
    await services.layers.arrive(overlay.digest, prepared.offers, context);
    await services.hydrations.startable(record.spec, overlay.digest, context);
  } else await services.layers.make(overlay.digest, context);
  context.step("layer");
  if ((await driver.observe(guest)) !== undefined) await driver.remove(guest, context);
  const files = layerFiles(services.layers.directoryOf(overlay.digest));
  if (prepared.rung !== "boot") {
    if (driver.synthesis === undefined) throw lacks(id);
    context.status(`resuming ${id}`);
    const resuming = driver.synthesis.resume(guest, await services.layers.origin(overlay.digest, context), context);
    if (lazy) await served(services, { overlay: overlay.digest, context }, resuming);
    else await resuming;
  } else if (driver.synthesis !== undefined) await driver.synthesis.makeOver(guest, files.disk, context);
  else if (driver.rootDelta !== undefined)
    await driver.rootDelta.makeFromDelta(guest, { digest: await deltaDigest(services, overlay.digest), path: files.delta }, context);
  else throw lacks(id);
  const whole: SynthesisRecord = lazy ? synthesis : { ...synthesis, wholeMillis: Date.now() - prepared.beganAt };
  const made = await services.records.update(id, (it) => ({ ...it, restartPending: false, synthesis: { ...it.synthesis, ...whole } }));
  context.step("synthesised");
  return made ?? record;
}

/** A hydrator that ends while a guest is being resumed is started again: the guest waits for what it would have sent. */
async function served(
  { layers }: Services,
  { overlay, context }: { overlay: string; context: JobContext },
  resuming: Promise<void>,
): Promise<void> {
  const done = new AbortController();
  const look = async (): Promise<void> => {
    if ((await layers.hydration(overlay)) === undefined && !done.signal.aborted) await layers.serve(overlay, context);
  };
  const keep = async (): Promise<void> => {
    while (await sleep(lookMillis, true, { signal: done.signal }).catch(() => false)) {
      // tried again; the guest's own failure says more
      await look().catch(() => undefined);
    }
  };
  const keeping = keep();
  try {
    await resuming;
  } finally {
    done.abort();
    await keeping;
  }
}

/** The driver compares the delta's own bytes, which the overlay's digest does not tell. */
export async function deltaDigest({ layers }: Pick<Services, "layers">, overlay: string): Promise<string> {
  const delta = (await layers.manifest(overlay)).files.find(({ name }) => name === "delta");
  if (delta !== undefined) return delta.digest;
  throw new CloudletError("INTEGRITY", `overlay ${overlay.slice(0, 12)} has no delta of a root file system`, { fix: "build it anew" });
}

/** Removes what an attempt that cannot succeed has made of a cloudlet that never was. */
export async function undoSynthesis(services: Services, { record, driver, guest }: Opened, status: (text: string) => void): Promise<void> {
  const { id } = record.spec;
  const progress = { signal: AbortSignal.timeout(60_000), status };
  status(`removing what was made of ${id}`);
  await services.hydrations.end(id);
  await driver.remove(guest, progress);
  await services.records.remove(id);
  await services.network.publish(await services.records.list());
  await collectLayers(services);
}

/** Starts a guest that ended while its overlay was coming: its memory again where nobody has heard from it yet, else from its disk. */
export async function startWhole(services: Services, id: string, progress: Progress): Promise<void> {
  const record = await services.records.read(id);
  if (record === undefined) return;
  const driver = await services.hypervisors.driver(record.spec.kind);
  const guest = await guestOf(services, record, await imagesOf(services, record));
  const { synthesis } = record;
  if (synthesis?.rung === "lazy" && synthesis.firstReplyMillis === undefined && driver.synthesis !== undefined) {
    await driver.remove(guest, progress);
    await driver.synthesis.resume(guest, await services.layers.origin(synthesis.overlay, progress), progress);
  } else await driver.start(guest, progress);
}

/** Where both are known, what the start has cost. */
export function provisionOf(synthesis: SynthesisRecord | undefined): Provision | undefined {
  if (synthesis?.firstReplyMillis === undefined || synthesis.wholeMillis === undefined || synthesis.hydrating) return undefined;
  const { rung, reason, firstReplyMillis, wholeMillis, bytesTransferred, bytesAvoided } = synthesis;
  // what does not match its digest is never used, so what runs was verified
  return {
    rung,
    reason,
    firstReplyMillis,
    totalMillis: Math.max(firstReplyMillis, wholeMillis),
    bytesTransferred,
    bytesAvoided,
    verified: true,
  };
}

/** Writes down that the application has answered for the first time. */
export async function noteFirstReply(services: Services, id: string): Promise<void> {
  await services.records.update(id, (record) => {
    const { synthesis } = record;
    if (synthesis === undefined || synthesis.firstReplyMillis !== undefined) return record;
    return withSynthesis(record, { ...synthesis, firstReplyMillis: Date.now() - synthesis.beganAt });
  });
}

export function withSynthesis(record: InstanceRecord, synthesis: SynthesisRecord): InstanceRecord {
  const provision = record.provision ?? provisionOf(synthesis);
  return { ...record, synthesis, ...(provision && { provision }) };
}

function synthesisOf(overlay: string, prepared: Prepared): SynthesisRecord {
  const { rung, reason, beganAt, bytesTransferred, bytesAvoided } = prepared;
  return { overlay, rung, reason, beganAt, bytesTransferred, bytesAvoided, hydrating: rung === "lazy" };
}

function lacks(id: string): CloudletError {
  return new CloudletError("UNSUPPORTED", `this node's hypervisor cannot make cloudlet ${id} from an overlay`, {
    fix: "leave the overlay out, or use another hypervisor",
  });
}
