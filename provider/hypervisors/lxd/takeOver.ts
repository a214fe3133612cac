import { cpus, totalmem } from "node:os";
import { Readable } from "node:stream";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { ForeignGuest, ForeignGuests, Guest, Progress } from "../types.ts";
import { ask, download, find } from "./client.ts";
import { foreignInstanceSchema, mibOf, publishIt, rootOf, toForeign, uuidOf, type ForeignInstance } from "./foreign.ts";
import { endInstance, setConfig, stopInstance } from "./instances.ts";
import { environmentKey, isOurs, keys, toLxd } from "./mapping.ts";
import { contentsOf } from "./multipart.ts";
import { deadlines, perform, settle, waitOf } from "./operations.ts";

/** Containers that were made by `lxc` or by others. Only `take` and `remove` change anything. */
export function foreignContainers(rest: Rest): ForeignGuests {
  return {
    async find(name, signal) {
      const instance = await look(rest, name, signal);
      if (instance === undefined) return undefined;
      const found = toForeign(instance, {
        cores: cpus().length,
        memoryMib: mib(totalmem()),
        diskMib: await diskMibOf(rest, instance, signal),
      });
      await mustHaveImage(rest, found, signal);
      return { ...found, address: await addressOf(rest, name, signal) };
    },
    openBase: (digest, signal) => openImage(rest, digest, signal),
    take: (guest, foreign, progress) => take(rest, guest, { uuid: foreign.uuid, progress }),
    async remove({ name, uuid }, id, progress) {
      await settle(rest, name, progress);
      const instance = await look(rest, name, progress.signal);
      if (instance === undefined || uuidOf(instance) !== uuid || (instance.config[keys.id] ?? id) !== id) return false;
      if (instance.status !== "Stopped") await endInstance(rest, name, { gentle: true, progress });
      await perform(rest, { method: "DELETE", path: `/1.0/instances/${name}`, what: `remove ${name}` }, waitOf(progress, deadlines.remove));
      return true;
    },
  };
}

/** From the first step on it is marked as the cloudlet's; with the last it has nothing of its profiles and proxies, and the cloudlets' network. */
async function take(rest: Rest, guest: Guest, { uuid, progress }: { uuid: string; progress: Progress }): Promise<void> {
  const { name, spec } = guest;
  const lookAt = async (): Promise<ForeignInstance> => {
    const instance = await look(rest, name, progress.signal);
    if (instance !== undefined && uuidOf(instance) === uuid) return instance;
    throw new CloudletError("NOT_FOUND", `${rest.label} has no longer the container "${name}" that was imported as ${spec.id}`, {
      fix: "run `pulumi refresh`, which drops it from the state",
    });
  };
  await settle(rest, name, progress);
  const found = await lookAt();
  if (!isOurs(found, spec)) {
    // said before anything changes
    toForeign(found, spec.resources);
    const config = { [keys.id]: spec.id, [keys.owner]: spec.owner, [keys.base]: spec.base.digest };
    await setConfig(rest, guest, { config, progress });
  }
  await stopInstance(rest, guest, progress);
  const instance = await lookAt();
  const root = rootOf(instance);
  const wanted = toLxd(guest, root.pool ?? "default");
  const body = {
    architecture: instance.architecture,
    description: instance.description,
    profiles: [],
    config: { ...instance.expanded_config, ...wanted.config, [keys.environment]: environmentKey(spec) },
    devices: { ...wanted.devices, root: { ...root, ...wanted.devices.root } },
  };
  const what = `take over ${name}`;
  await perform(rest, { method: "PUT", path: `/1.0/instances/${name}`, body, what }, waitOf(progress, deadlines.update));
}

function look(rest: Rest, name: string, signal: AbortSignal): Promise<ForeignInstance | undefined> {
  return find(
    rest,
    { method: "GET", path: `/1.0/instances/${encodeURIComponent(name)}`, what: `look at ${name}`, signal },
    foreignInstanceSchema,
  );
}

async function mustHaveImage(rest: Rest, { name, base }: Pick<ForeignGuest, "name" | "base">, signal: AbortSignal): Promise<void> {
  const what = `look for the image of ${name}`;
  if ((await find(rest, { method: "GET", path: `/1.0/images/${base}`, what, signal }, z.object({ fingerprint: z.string() }))) !== undefined)
    return;
  throw new CloudletError("REFUSED", `LXD has no longer the image ${base.slice(0, 12)} that "${name}" was made from`, {
    fix: publishIt(name),
  });
}

/** An image in one part has the digest of its bytes, one in two that of both, one after the other. */
async function openImage(rest: Rest, digest: string, signal: AbortSignal): Promise<Readable> {
  const what = `export the image ${digest.slice(0, 12)}`;
  const { headers, body } = await download(rest, { method: "GET", path: `/1.0/images/${digest}/export`, what, signal });
  const boundary = /^multipart\/.*boundary="?([^";]+)/.exec(String(headers["content-type"] ?? ""))?.[1];
  return boundary === undefined ? body : Readable.from(contentsOf(body as AsyncIterable<Buffer>, boundary));
}

const poolSchema = z.object({ driver: z.string(), config: z.record(z.string(), z.string()) });
const spaceSchema = z.object({ space: z.object({ total: z.int() }) });
// what LXD gives a root disk of its own there, where nobody says how much
const blockDrivers = ["lvm", "ceph"];
const usualVolume = "10GiB";

/** How large a root disk without a size is: as the pool, or as the pool makes them. */
async function diskMibOf(rest: Rest, instance: ForeignInstance, signal: AbortSignal): Promise<number> {
  const { pool, size } = rootOf(instance);
  if (pool === undefined || mibOf(size) !== undefined) return 0;
  const path = `/1.0/storage-pools/${encodeURIComponent(pool)}`;
  const what = `look at the storage pool ${pool}`;
  const { driver, config } = await ask(rest, { method: "GET", path, what, signal }, poolSchema);
  const usual = mibOf(config["volume.size"]) ?? (blockDrivers.includes(driver) ? mibOf(usualVolume) : undefined);
  if (usual !== undefined) return usual;
  return mib((await ask(rest, { method: "GET", path: `${path}/resources`, what, signal }, spaceSchema)).space.total);
}

const networkSchema = z.object({
  network: z
    .record(z.string(), z.object({ addresses: z.array(z.object({ family: z.string(), address: z.string(), scope: z.string() })) }))
    .nullish(),
});

async function addressOf(rest: Rest, name: string, signal: AbortSignal): Promise<string> {
  const request = {
    method: "GET" as const,
    path: `/1.0/instances/${encodeURIComponent(name)}/state`,
    what: `look at the network of ${name}`,
    signal,
  };
  const { network } = await ask(rest, request, networkSchema);
  return network?.["eth0"]?.addresses.find(({ family, scope }) => family === "inet" && scope === "global")?.address ?? "";
}

function mib(bytes: number): number {
  return Math.floor(bytes / 1024 / 1024);
}
