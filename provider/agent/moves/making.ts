import { createReadStream } from "node:fs";
import { mkdir, open, rm } from "node:fs/promises";
import { join } from "node:path";
import { CloudletError } from "../../core/errors.ts";
import type { Driver, Progress } from "../../hypervisors/types.ts";
import { layerFiles } from "../../synthesis/layerFiles.ts";
import { isDiskFull } from "../durable.ts";
import { guestOf, imagesOf } from "../instances.ts";
import type { InstanceSpec } from "../protocol.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";
import { deltaDigest } from "../synthesis/synthesise.ts";
import type { Source } from "./assembly.ts";
import { decompressFile } from "./compression.ts";
import type { Recipe } from "./recipe.ts";

const makeMillis = 15 * 60_000;

/** What has arrived, as whole files below a directory. */
export interface Arrived {
  directory: string;
  mode: "cold" | "state";
  parts: Recipe[];
}

/** Makes the stopped guest and its volumes' data from what has arrived. Nothing of an earlier attempt is left in them. */
export async function makeArrived(services: Services, record: InstanceRecord, { directory, mode, parts }: Arrived): Promise<void> {
  const progress: Progress = { signal: AbortSignal.timeout(makeMillis), status: () => undefined };
  const driver = await services.hypervisors.driver(record.spec.kind);
  for (const { id, part, sizeMib } of volumeParts(record, parts)) {
    const volume = { from: join(directory, part.name), to: services.volumes.dataPath(id), sizeMib };
    if (part.name.endsWith(".raw")) await placeRaw(driver, volume, progress);
    else await placeTar(driver, volume, progress);
  }
  const { overlay } = record.spec;
  if (overlay !== undefined) await services.layers.make(overlay.digest, progress);
  const guest = await guestOf(services, record, await imagesOf(services, record));
  await driver.remove(guest, progress);
  await mkdir(guest.directory, { recursive: true });
  if (mode === "cold") await driver.importParts(guest, directory, progress);
  // a container's overlay is a delta of its files, which `ensure` knows nothing of
  else if (overlay !== undefined && driver.rootDelta !== undefined)
    await driver.rootDelta.makeFromDelta(
      guest,
      { digest: await deltaDigest(services, overlay.digest), path: layerFiles(services.layers.directoryOf(overlay.digest)).delta },
      progress,
    );
  await driver.ensure(guest, progress);
  const state = parts.find(({ name }) => name === "state.tar");
  if (mode === "state" && state !== undefined) await driver.importState(guest, createReadStream(join(directory, state.name)), progress);
}

/** From now on the volumes that came along are this node's. */
export async function takeVolumes(services: Services, record: InstanceRecord, parts: Recipe[]): Promise<void> {
  const sizes = volumeParts(record, parts).map(({ sizeMib }) => sizeMib);
  await takeSizes(services, record, sizes);
}

/** The same, of sizes in the order of the cloudlet's volumes. */
export async function takeSizes(services: Services, { spec }: InstanceRecord, sizes: readonly number[]): Promise<void> {
  const { owner, kind } = spec;
  for (const [index, { id }] of spec.volumes.entries()) {
    const known = await services.volumes.read(id);
    await services.volumes.write({ spec: { owner, ...known?.spec, id, kind, sizeMib: sizes[index] ?? 0 }, place: "here" });
  }
}

/** Name of a volume's part: its place among the cloudlet's volumes, its size, and its form. */
export function volumePartName(index: number, sizeMib: number, format: "raw" | "tar"): string {
  return `volume-${String(index)}.${String(sizeMib)}.${format}`;
}

/** Runs with the files in which pieces of an archive may be: the base, without its compression for as long as that takes. */
export async function withBase<T>(
  { store }: Pick<Services, "store">,
  { kind, base: { digest }, directory }: Pick<InstanceSpec, "kind" | "base"> & { directory: string },
  use: (sources: Source[]) => Promise<T>,
): Promise<T> {
  if (kind !== "lxd" || !(await store.has(digest))) return use([]);
  const plain = join(directory, "base.plain");
  await mkdir(directory, { recursive: true });
  try {
    return await use(await plainArchive(await store.path(digest), plain));
  } finally {
    await rm(plain, { force: true });
  }
}

/** None for an LXD image in two parts, which is no archive: then all is sent. */
async function plainArchive(from: string, plain: string): Promise<Source[]> {
  try {
    await decompressFile(from, plain);
    return [{ path: plain, format: "tar" }];
  } catch (error) {
    // what cannot be written now could not be written later either
    if (isDiskFull(error)) throw error;
    return [];
  }
}

function volumeParts({ spec }: InstanceRecord, parts: Recipe[]): { id: string; part: Recipe; sizeMib: number }[] {
  return spec.volumes.map(({ id }, index) => {
    const part = parts.find(({ name }) => name.startsWith(`volume-${String(index)}.`));
    if (part === undefined) throw new CloudletError("INTEGRITY", `volume ${id} of ${spec.id} was not sent`);
    return { id, part, sizeMib: Number(/^volume-\d+\.(\d+)\./.exec(part.name)?.[1] ?? 0) };
  });
}

interface Placing {
  from: string;
  to: string;
  sizeMib: number;
}

async function placeTar(driver: Driver, { from, to, sizeMib }: Placing, progress: Progress): Promise<void> {
  await mkdir(join(to, ".."), { recursive: true, mode: 0o755 });
  await driver.writeVolume(to, sizeMib, createReadStream(from), progress);
}

async function placeRaw(driver: Driver, { from, to, sizeMib }: Placing, progress: Progress): Promise<void> {
  await mkdir(join(to, ".."), { recursive: true, mode: 0o755 });
  // made first for its owner and mode, then given the content
  await rm(to, { force: true });
  await driver.createVolume(to, sizeMib, progress);
  await overwrite(from, to);
}

async function overwrite(from: string, to: string): Promise<void> {
  const target = await open(to, "r+");
  try {
    let position = 0;
    for await (const chunk of createReadStream(from, { highWaterMark: 1024 * 1024 }) as AsyncIterable<Buffer>) {
      await target.write(chunk, 0, chunk.length, position);
      position += chunk.length;
    }
    await target.sync();
  } finally {
    await target.close();
  }
}
