import { rm } from "node:fs/promises";
import { networkInterfaces } from "node:os";
import { CloudletError } from "../../core/errors.ts";
import { checkPorts } from "../instanceApply.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec } from "../protocol.ts";
import { allocateNetwork, type InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { blobsOf } from "../synthesis/references.ts";
import { discardCopy } from "./copies.ts";
import type { MoveFiles } from "./files.ts";
import { endForwards } from "./forwarding.ts";
import type { Recipe } from "./recipe.ts";

/** Nothing that an earlier stay or an earlier attempt has left may mix with what arrives. */
export async function makeRoom(
  services: Services,
  files: MoveFiles,
  coming: { spec: InstanceSpec; epoch: number; from: string; record: InstanceRecord | undefined; context: JobContext },
): Promise<void> {
  const { spec, epoch, from, record, context } = coming;
  // whoever owns it at a later epoch has activated the one that left here
  if (record?.leaving === true) await discardCopy(services, record, context);
  const again = record?.ownership.role === "incoming" && record.ownership.epoch === epoch;
  if (!again) await files.forget(spec.id);
  for (const { id } of again ? [] : spec.volumes) {
    if ((await services.volumes.read(id))?.place !== "here") continue;
    throw new CloudletError("REFUSED", `${spec.id} brings volume ${id}, and this node has another one of that name`, {
      fix: "remove or rename the volume on the node where the cloudlet should go",
    });
  }
  await reserve(services, spec, { ownership: { epoch, role: "incoming", peer: from }, existing: record });
}

/** An overlay's manifest says only once it is here what else belongs to it. */
export async function blobsOfSpec(services: Services, { base, build, overlay }: InstanceSpec): Promise<string[]> {
  return [base.digest, ...(build ? [build.digest] : []), ...(overlay ? await blobsOf(services, overlay.digest) : [])];
}

export function checkPrepare({ spec, epoch }: { spec: InstanceSpec; epoch: number }, record: InstanceRecord | undefined): void {
  if (record === undefined) return;
  const { role, epoch: known } = record.ownership;
  if (record.spec.owner !== spec.owner) throw new CloudletError("CONFLICT", `${spec.id} on this node belongs to ${record.spec.owner}`);
  if (role === "owner" && known !== epoch) {
    throw new CloudletError("CONFLICT", `this node already runs ${spec.id}, at epoch ${known}`, {
      fix: "run `pulumi refresh` to see where the cloudlet is",
    });
  }
  if (known > epoch || (role === "released" && known === epoch)) {
    throw new CloudletError("CONFLICT", `${spec.id} was here at epoch ${known}, so a move at epoch ${epoch} is out of date`, {
      fix: "run `pulumi refresh` to see where the cloudlet is; if it was made anew while a node's clock was wrong, correct that clock and replace it",
    });
  }
}

/** What has come of an arrival before helps only where there is room for it beside what comes now. */
export async function requireRoomFor({ store }: Services, parts: readonly Recipe[], directory: string): Promise<void> {
  const bytes = parts.reduce((sum, part) => sum + part.bytes, 0);
  try {
    await store.requireSpace(bytes);
  } catch {
    await rm(directory, { recursive: true, force: true });
    await store.requireSpace(bytes);
  }
}

/** Addresses at which another node might reach this one; guests' bridges are not among them. */
export function ownAddresses(): string[] {
  return Object.entries(networkInterfaces())
    .filter(([name]) => !/^(lo|cloudlet|lxd|virbr|docker|cl[0-9a-f]{8})/.test(name))
    .flatMap(([, addresses]) => addresses ?? [])
    .filter(({ internal, address }) => !internal && !address.startsWith("fe80:"))
    .map(({ address }) => address);
}

/** One step that no other claim of a port or an address can get between. */
async function reserve(
  services: Services,
  spec: InstanceSpec,
  { ownership, existing }: { ownership: InstanceRecord["ownership"]; existing: InstanceRecord | undefined },
): Promise<void> {
  const { records, lock } = services;
  await lock.run("hypervisor", async () => {
    const others = (await records.list()).filter((record) => record.spec.id !== spec.id);
    await checkPorts(services, { spec, others, existing });
    const network = allocateNetwork(spec.id, new Set([...others, ...(await services.builds.list())].map((other) => other.network.address)));
    await endForwards(services, spec);
    // until it runs here again, it runs where its clients are passed on to
    const forward = existing?.forward && { forward: existing.forward };
    await records.write({ network, spec, ownership, complete: false, restartPending: false, ...forward });
  });
}
