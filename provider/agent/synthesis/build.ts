import { createHash } from "node:crypto";
import { createWriteStream } from "node:fs";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../../core/errors.ts";
import type { Frozen } from "../../hypervisors/types.ts";
import { layerFiles } from "../../synthesis/layerFiles.ts";
import type { Sealed, SealInput } from "../../synthesis/sealTypes.ts";
import type { JobContext } from "../jobs.ts";
import type { Login, Makings, OverlayStatus, VerbArgs } from "../protocol.ts";
import { waitReady } from "../ready.ts";
import type { Services } from "../services.ts";
import { specOf, whileItRuns, withBuildGuest } from "./buildGuest.ts";
import type { BuildGuest } from "./buildGuest.ts";
import { furnish } from "./furnish.ts";
import { builtBefore, keepOverlay } from "./overlays.ts";

const mib = 1024 * 1024;

interface Build {
  services: Services;
  makings: Makings;
  login: Login | undefined;
  key: string;
  context: JobContext;
}

/** Builds an overlay and keeps it; one that was built from the same makings is taken as it is. */
export async function buildOverlay(
  services: Services,
  { name, owner, makings, login }: VerbArgs<"overlay.build">,
  context: JobContext,
): Promise<OverlayStatus> {
  const key = createHash("sha256").update(JSON.stringify(makings)).digest("hex");
  return services.lock.run(`build:${key}`, () => inTurn({ services, makings, login, key, context }, { name, owner }), context.signal);
}

async function inTurn(build: Build, holder: { name: string; owner: string }): Promise<OverlayStatus> {
  const { services, makings, key, context } = build;
  const before = await builtBefore(services, key);
  if (before !== undefined) {
    context.status(`overlay ${before.digest.slice(0, 12)} was built from the same before`);
    const built = { makings: key, resources: makings.resources, buildMillis: before.buildMillis ?? 0 };
    return keepOverlay(services, { ...holder, digest: before.digest, built }, context);
  }
  const beganAt = Date.now();
  await services.store.requireSpace(2 * makings.resources.memoryMib * mib);
  const digest = await (makings.kind === "kvm" ? buildMachine(build) : buildContainer(build));
  const built = { makings: key, resources: makings.resources, buildMillis: Date.now() - beganAt };
  return keepOverlay(services, { ...holder, digest, built }, context);
}

async function buildMachine(build: Build): Promise<string> {
  const { services, makings, login, key, context } = build;
  const { base, parent } = makings;
  if (parent !== undefined) await services.layers.make(parent, context);
  const basePath = parent === undefined ? await services.store.path(base) : layerFiles(services.layers.directoryOf(parent)).disk;
  const spec = specOf(`build/${key.slice(0, 16)}`, makings, login);
  return withBuildGuest(services, { spec, basePath }, async (built) => {
    const { driver, guest, record } = built;
    if (driver.synthesis === undefined) throw unable();
    context.status("making the guest that the overlay is built in");
    await driver.ensure(guest, context);
    context.step("made");
    const origin = parent === undefined ? undefined : await services.layers.origin(parent, context);
    await services.starts.run(makings.resources, context, async () => {
      await driver.synthesis?.startForFreeze(guest, origin, context);
      context.step("started");
      await whileItRuns(built, { context }, (running) => furnish(built, { makings, login }, running));
    });
    context.status("freezing the guest");
    const frozen = await driver.synthesis.freeze(guest, context);
    context.step("frozen");
    const network = origin?.network ?? record.network;
    const draft = await sealMachine(build, { built, frozen, network });
    context.step("sealed");
    const digest = await packTried(build, draft, guest.directory);
    context.step("packed");
    return digest;
  });
}

interface Sealing {
  built: BuildGuest;
  frozen: Frozen;
  network: { mac: string; address: string };
}

async function sealMachine(build: Build, { built, frozen, network }: Sealing): Promise<string> {
  const { services, makings, context } = build;
  const { works, layers, store } = services;
  const { kind, base, parent, resources, ready } = makings;
  const { signal } = context;
  const below = parent === undefined ? undefined : layerFiles(layers.directoryOf(parent));
  const basePath = below?.disk ?? (await store.path(base));
  const format = below === undefined ? await works.imageFormat(basePath, signal) : "qcow2";
  context.status("sealing the overlay");
  const view = works.withRawView.bind(works);
  return view({ file: frozen.disk, format: "qcow2" }, signal, (disk) =>
    view({ file: basePath, format }, signal, (diskBelow) => {
      const sealAll = (memoryBelow?: string): Promise<string> =>
        sealInto(build, built.guest.directory, {
          kind,
          base,
          ...(parent !== undefined && { parent }),
          diskMib: resources.diskMib,
          machine: frozen.machine,
          network,
          ready,
          disk: { current: disk, below: diskBelow, virtualBytes: resources.diskMib * mib },
          memory: { current: frozen.memory, below: memoryBelow, virtualBytes: resources.memoryMib * mib },
          files: [
            { name: "state", path: frozen.state },
            { name: "seed", path: frozen.seed },
          ],
        });
      return below === undefined ? sealAll() : view({ file: below.memory, format: "qcow2" }, signal, sealAll);
    }),
  );
}

/** The draft, packed for good in the order in which a guest that is resumed from it reads. One that does not resume is no overlay. */
async function packTried({ services, makings, key, context }: Build, draft: string, parent: string): Promise<string> {
  const { layers, works } = services;
  const spec = { ...specOf(`trial/${key.slice(0, 16)}`, makings), overlay: { digest: draft } };
  context.status("resuming the overlay once, to learn what it reads first");
  // the guest is the draft's only holder, so it stays known until the draft has been read
  const packing = withBuildGuest(services, { spec, basePath: "" }, async (trial) => {
    const { driver, guest } = trial;
    await layers.make(draft, context);
    const order = join(guest.directory, "touched.json");
    const origin = await layers.recording(draft, order, context);
    await services.starts.run(makings.resources, context, async () => {
      await driver.synthesis?.resume(guest, origin, context);
      const missing = async (): Promise<string | undefined> => ((await layers.hydration(draft)) ? undefined : "the process that serves it");
      await whileItRuns(trial, { context, missing }, (running) =>
        untilRead(trial, { ready: makings.ready, watchMillis: works.watchMillis }, running),
      );
    });
    await layers.endRecording(draft);
    const touched = await works.touched(order);
    await driver.remove(guest, context);
    context.step("tried");
    const paths = await layers.paths(draft);
    const parentLayer = makings.parent === undefined ? undefined : layers.directoryOf(makings.parent);
    return intoStore(services, parent, (directory) =>
      works.reorder({ ...paths, layer: layers.directoryOf(draft), parentLayer, touched, directory }, context),
    );
  });
  return packing.then(
    async (digest) => {
      if (digest !== draft) await layers.remove(draft);
      return digest;
    },
    async (error: unknown) => {
      await layers.endRecording(draft);
      await layers.remove(draft);
      throw error;
    },
  );
}

async function untilRead(
  { driver, guest, record }: BuildGuest,
  { ready, watchMillis }: { ready: Makings["ready"]; watchMillis: number },
  { signal }: JobContext,
): Promise<void> {
  const log = (lines: number): Promise<string> => driver.log(guest, lines);
  await waitReady({ id: record.spec.id, address: record.network.address, ready, log }, signal);
  await sleep(watchMillis, undefined, { signal });
}

async function buildContainer(build: Build): Promise<string> {
  const { services, makings, key, context } = build;
  const basePath = await services.store.path(makings.base);
  return withBuildGuest(services, { spec: specOf(`build/${key.slice(0, 16)}`, makings), basePath }, async (built) => {
    const { driver, guest } = built;
    if (driver.rootDelta === undefined) throw unable();
    await driver.ensure(guest, context);
    context.step("made");
    await services.starts.run(makings.resources, context, async () => {
      await driver.start(guest, context);
      context.step("started");
      await whileItRuns(built, { context }, (running) => furnish(built, { makings, login: undefined }, running));
    });
    await driver.stop(guest, context);
    context.step("frozen");
    context.status("sealing the overlay");
    const delta = join(guest.directory, "delta.tar");
    await mkdir(guest.directory, { recursive: true });
    await pipeline(await driver.rootDelta.rootDelta(guest, context), createWriteStream(delta), { signal: context.signal });
    const { kind, base, resources, ready } = makings;
    const digest = await sealInto(build, guest.directory, {
      kind,
      base,
      diskMib: resources.diskMib,
      ready,
      files: [{ name: "delta", path: delta }],
    });
    context.step("sealed");
    return digest;
  });
}

async function sealInto(build: Build, parent: string, input: Omit<SealInput, "directory">): Promise<string> {
  return intoStore(build.services, parent, (directory) => build.services.works.seal({ ...input, directory }, build.context));
}

/** Puts what `write` writes into a directory into the store. Returns the overlay's digest. */
async function intoStore(services: Services, parent: string, write: (directory: string) => Promise<Sealed>): Promise<string> {
  const directory = join(parent, "sealed");
  await rm(directory, { recursive: true, force: true });
  await mkdir(directory, { recursive: true });
  const sealed = await write(directory);
  for (const { digest, path } of sealed.blobs) await services.store.adopt(digest, path);
  await rm(directory, { recursive: true, force: true });
  return sealed.digest;
}

function unable(): CloudletError {
  return new CloudletError("UNSUPPORTED", "this node's hypervisor cannot build overlays", {
    fix: "build it on a node with another hypervisor",
  });
}
