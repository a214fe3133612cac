import { readFile } from "node:fs/promises";
import { CloudletError } from "../../core/errors.ts";
import type { Driver } from "../../hypervisors/types.ts";
import type { Manifest } from "../../synthesis/manifest.ts";
import { plan } from "../../synthesis/plan.ts";
import type { Ground } from "../../synthesis/plan.ts";
import { parseCpuInfo } from "../facts.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec, Offer, Rung } from "../protocol.ts";
import type { Services } from "../services.ts";
import { fetchBlobs, fetchThese } from "./fetch.ts";

/** How a cloudlet is going to be made from its overlay; everything that its rung needs before the start is in the store. */
export interface Prepared {
  manifest: Manifest;
  rung: Rung;
  reason: string;
  offers: readonly Offer[];
  beganAt: number;
  bytesTransferred: number;
  bytesAvoided: number;
}

interface Wanted {
  spec: InstanceSpec;
  offers: readonly Offer[];
  importsState: boolean;
}

/** Chooses the rung and brings what it needs. What cannot run here is refused before anything but the manifest is transferred. */
export async function prepareSynthesis(
  services: Services,
  digest: string,
  { wanted, context }: { wanted: Wanted; context: JobContext },
): Promise<Prepared> {
  const beganAt = Date.now();
  const tally = new Tally(services, wanted.offers, context);
  await tally.take([digest]);
  const manifest = await services.layers.manifest(digest);
  const here = (await services.layers.isWhole(digest)) || (await services.store.has(manifest.pack.digest));
  if (!here && wanted.offers.length === 0)
    throw new CloudletError("NOT_FOUND", `the pack of overlay ${digest.slice(0, 12)} is not on this node, and nobody offers it`, {
      fix: "name a node that has the overlay, or send it to this node first",
    });
  const { rung, reason } = await chooseRung(services, manifest, { ...wanted, here });
  await tally.take([manifest.base, manifest.index.digest]);
  // a damaged base or index is noticed before anything is written down
  await services.layers.base(manifest.base);
  if (!(await services.layers.isWhole(digest))) await services.layers.read(digest);
  if (manifest.parent !== undefined) await tally.takeWhole(manifest.parent);
  if (rung === "boot" && !here) await tally.take([manifest.pack.digest]);
  if (here) tally.avoided += manifest.pack.bytes;
  context.status(`${wanted.spec.id} starts by rung ${rung}: ${reason}`);
  const { transferred: bytesTransferred, avoided: bytesAvoided } = tally;
  return { manifest, rung, reason, offers: wanted.offers, beganAt, bytesTransferred, bytesAvoided };
}

/** Images of a cloudlet without an overlay, where others offer what is missing. */
export async function fetchImages(
  services: Services,
  { spec, offers }: { spec: InstanceSpec; offers: readonly Offer[] },
  context: JobContext,
): Promise<void> {
  const digests = [spec.base.digest, ...(spec.build === undefined ? [] : [spec.build.digest])];
  if (offers.length > 0) await fetchThese(services, { digests, offers }, context);
}

async function chooseRung(
  services: Services,
  manifest: Manifest,
  { spec, importsState, here }: Wanted & { here: boolean },
): Promise<{ rung: Rung; reason: string }> {
  if (manifest.kind !== spec.kind)
    throw new CloudletError(
      "REFUSED",
      `the overlay of cloudlet ${spec.id} is for hypervisors of kind ${manifest.kind}, and this one is ${spec.kind}`,
      {
        fix: `give an overlay for ${spec.kind}`,
      },
    );
  const driver = await services.hypervisors.driver(spec.kind);
  const planned = plan({
    spec: { ...spec, base: spec.base.digest, volumes: spec.volumes.length },
    holding: { base: manifest.base, diskMib: manifest.diskMib, ...(manifest.memory && manifest.network && { machine: manifest.machine }) },
    ground: await groundOf(services, driver, spec),
    place: here ? "here" : "elsewhere",
    importsState,
  });
  if ("refusal" in planned) {
    const { path, message, fix } = planned.refusal;
    throw new CloudletError("REFUSED", `${path} of cloudlet ${spec.id} ${message}`, { fix });
  }
  if (planned.rung === undefined) throw new CloudletError("BUG", `no rung was chosen for cloudlet ${spec.id}: ${planned.reason}`);
  return { rung: planned.rung, reason: planned.reason };
}

async function groundOf(services: Services, driver: Driver, { resources }: InstanceSpec): Promise<Ground> {
  const { accelerator, machineTypes } = await services.hypervisors.describe();
  const machine = await driver.synthesis?.machine(resources);
  // what the processor itself has, not what guests are pinned to
  const { flags } = parseCpuInfo(await readFile("/proc/cpuinfo", "utf8").catch(() => ""));
  return { accelerator, machineTypes, ...(machine && { cpuModel: machine.cpu.model, cpuFlags: flags }) };
}

/** Counts what came and what need not come. */
class Tally {
  readonly #services: Services;
  readonly #offers: readonly Offer[];
  readonly #context: JobContext;
  transferred = 0;
  avoided = 0;

  constructor(services: Services, offers: readonly Offer[], context: JobContext) {
    this.#services = services;
    this.#offers = offers;
    this.#context = context;
  }

  async take(digests: string[]): Promise<void> {
    this.#count(await fetchThese(this.#services, { digests, offers: this.#offers }, this.#context));
  }

  async takeWhole(overlay: string): Promise<void> {
    this.#count(await fetchBlobs(this.#services, { digests: [overlay], offers: this.#offers }, this.#context));
  }

  #count({ bytesTransferred, bytesAvoided }: { bytesTransferred: number; bytesAvoided: number }): void {
    this.transferred += bytesTransferred;
    this.avoided += bytesAvoided;
  }
}
