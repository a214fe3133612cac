import { createHash } from "node:crypto";
import { mkdir, open, readFile, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { promisify } from "node:util";
import { gunzip, gzip } from "node:zlib";
import { z } from "zod";
import { exists, readJson, writeDurably } from "../../../agent/durable.ts";
import { CloudletError } from "../../../core/errors.ts";
import type { CommonImages, FormerCopy, Guest, Live, LiveArrival, LiveDeparture, Progress } from "../../types.ts";
import { probeAcceleration } from "../acceleration.ts";
import { limitProcessor } from "../confinement.ts";
import { createOverlay, diskInfo } from "../disks.ts";
import { guestAgent } from "../guestAgent.ts";
import { guestFiles, launchSchema, type Launch } from "../guestFiles.ts";
import { isLive, launchProcess, openNic, withQmp, type Surroundings } from "../launch.ts";
import { catchUpClock, end, settingsOf, start } from "../lifecycle.ts";
import { answerDhcp } from "../ownNetwork.ts";
import { queryStatus, resume } from "../qmpCommands.ts";
import { openRawView } from "../rawView.ts";
import { Arrival, closeHere, openHere } from "./arrival.ts";
import { Departure } from "./departure.ts";
import { Images } from "./images.ts";
import { removePlaces } from "./place.ts";
import { isLiveBitmap } from "./diskRounds.ts";
import { bitmapsOf, cancelLive, queryMigration, removeBitmap, removeGuard, stopServing } from "./qmpLive.ts";

/** What the target's QEMU must be like. */
const shapeSchema = z.object({
  version: z.literal(1),
  launch: launchSchema,
  diskBytes: z.int(),
  /** In the order of the cloudlet's volumes. */
  volumeBytes: z.array(z.int()),
  /** Who the guest believes to be. */
  network: z.object({ mac: z.string(), address: z.string() }),
  /** The seed that the guest has seen, compressed, and what it is known by; it may look at it again. */
  seed: z.object({ id: z.string(), gzip: z.base64() }),
  /** Of a guest that has the node's own processor: which one that is. */
  processor: z.string().optional(),
  /** Whether it runs with all that is declared. */
  current: z.boolean(),
});
type Shape = z.infer<typeof shapeSchema>;

export function createLive(surroundings: () => Promise<Surroundings>): Live {
  return {
    shape: async (guest) => shapeOf(guest),
    diskBytes,
    copy: async (guest, parts, progress) => copy(guest, parts, { around: await surroundings(), progress }),
    depart: async (guest, known, progress) => depart(guest, known, { around: await surroundings(), progress }),
    stay,
    receive: async (guest, { shape, images, former }, progress) =>
      receive(guest, { shape: parseShape(shape), images: filesOf(images), former }, { around: await surroundings(), progress }),
    isWaiting,
    release: async (guest, progress) => start(guest, await surroundings(), progress),
    catchUp: async (guest) => catchUpClock(guest, await surroundings()),
  };
}

async function shapeOf(guest: Guest): Promise<{ shape: string } | { impossible: string }> {
  const files = guestFiles(guest);
  if (!(await isLive(guest))) return { impossible: "it does not run" };
  if (!(await withQmp(guest, files.qmp, queryStatus)).running) return { impossible: "it is paused" };
  const version = await qemuVersion(guest);
  if (!isKnown(version)) return { impossible: `QEMU ${version.join(".")} counts what is left of a migration in another way than 7.2` };
  const launch = await readJson(files.launch, launchSchema);
  if (launch === undefined) return { impossible: "it is not known how it was started" };
  if (await exists(files.arriving)) return { impossible: "its overlay is still arriving" };
  const disk = await diskInfo(files.disk, "qcow2");
  // they are inside the disk's file, which is not sent as a file
  if (disk.snapshots.length > 0) return { impossible: "it has snapshots, which only travel with a stopped guest" };
  const shape: Shape = {
    version: 1,
    launch,
    diskBytes: disk.virtualBytes,
    volumeBytes: await Promise.all(guest.volumes.map(async ({ hostPath }) => (await diskInfo(hostPath)).virtualBytes)),
    network: launch.inside ?? { mac: guest.network.mac, address: guest.network.address },
    seed: await seedOf(files, launch),
    ...(launch.accelerator === "kvm" && launch.pinned === undefined && { processor: await processorOf() }),
    current: launch.settings === settingsOf(guest),
  };
  return { shape: JSON.stringify(shape) };
}

async function diskBytes(guest: Guest): Promise<number> {
  let bytes = 0;
  for (const path of [guestFiles(guest).disk, ...guest.volumes.map(({ hostPath }) => hostPath)]) bytes += (await stat(path)).blocks * 512;
  return bytes;
}

async function depart(
  guest: Guest,
  known: { images: CommonImages; former: FormerCopy },
  context: { around: Surroundings; progress: Progress },
): Promise<LiveDeparture> {
  const { departure, views } = await openDeparture(guest, known, context);
  const { cores } = guest.spec.resources;
  return {
    round: (signal) => departure.round(signal),
    remaining: (signal) => departure.remaining(signal),
    last: (signal, onPaused) =>
      departure.last(signal, () => {
        onPaused();
        // QEMU itself has everything to do now
        limitProcessor(guest.name, { cores, percent: 0 }).catch(() => undefined);
      }),
    throttle: (percent) => limitProcessor(guest.name, { cores, percent }),
    close: () => departure.close().finally(() => views.close()),
  };
}

/** A first round that goes nowhere. */
async function copy(
  guest: Guest,
  { images, path }: { images: CommonImages; path: string },
  context: { around: Surroundings; progress: Progress },
): Promise<void> {
  const known = { images, former: { path, onTarget: Promise.resolve(Buffer.alloc(0)) } };
  const { departure, views } = await openDeparture(guest, known, context);
  try {
    for await (const _ of departure.round(context.progress.signal).records);
    await departure.keep();
  } finally {
    await departure.close();
    await views.close();
    await stay(guest);
  }
}

async function openDeparture(
  guest: Guest,
  { images, former }: { images: CommonImages; former: FormerCopy },
  { around, progress }: { around: Surroundings; progress: Progress },
): Promise<{ departure: Departure; views: Views }> {
  // what an attempt has left that was cut off
  await stay(guest);
  const trimmed = trim(guest, progress.status);
  const views = await openViews(filesOf(images), progress.signal);
  try {
    const known = await Images.indexed(views.paths, former.onTarget, progress.signal);
    const departure = await Departure.open(guest, { images: known, former: former.path, trimmed }, { around, progress });
    return { departure, views };
  } catch (error) {
    await views.close();
    await stay(guest);
    throw error;
  }
}

/** Blocks that the guest has freed need not travel; where nobody in the guest answers, they do. */
async function trim(guest: Guest, status: (text: string) => void): Promise<void> {
  const agent = guestAgent(guestFiles(guest).guestAgent, guest.name);
  if (!(await agent.ping(pingMillis))) return;
  status(`${guest.name} gives back freed blocks`);
  await agent.trim(trimMillis).catch(() => undefined);
}

async function stay(guest: Guest): Promise<void> {
  if (!(await isLive(guest))) return;
  const nodes = ["disk", ...guest.volumes.map((_, index) => `volume${String(index)}`)];
  await withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
    const { status } = await queryMigration(qmp);
    const left = await bitmapsOf(qmp, [...nodes, "guard"]);
    if (status === "none" && left.length === 0) return;
    await cancelLive(qmp, AbortSignal.timeout(cancelMillis));
    await stopServing(qmp);
    for (const { node, name } of left) if (isLiveBitmap(name)) await removeBitmap(qmp, node, name);
    await removeGuard(qmp);
    await limitProcessor(guest.name, { cores: guest.spec.resources.cores, percent: 0 });
    if (!(await queryStatus(qmp)).running) await resume(qmp);
  });
  await removePlaces(guest);
}

async function receive(
  guest: Guest,
  { shape, images, former }: { shape: Shape; images: string[]; former: string },
  { around, progress }: { around: Surroundings; progress: Progress },
): Promise<LiveArrival> {
  const accelerator = await mustFit(guest, shape);
  const files = guestFiles(guest);
  const views = await openViews(images, progress.signal);
  // it is read while QEMU starts
  const here = openHere(views.paths, former, progress.signal);
  here.catch(() => undefined);
  try {
    await makeFiles(guest, shape);
    const elsewhere = shape.launch.inside !== undefined || shape.network.address !== guest.network.address;
    const seed = await gunzipped(Buffer.from(shape.seed.gzip, "base64"));
    await writeDurably(elsewhere ? files.originSeed : files.seed, seed, 0o600);
    if (!elsewhere) await writeDurably(files.seedId, shape.seed.id, 0o600);
    const launch: Launch = {
      ...shape.launch,
      accelerator,
      ...(elsewhere && { inside: shape.network }),
      ...(shape.current && { settings: settingsOf(guest) }),
    };
    await writeDurably(files.launch, JSON.stringify(launch), 0o600);
    const nic = await openNic(guest, launch, around);
    await launchProcess(guest, launch, { around, nic, incoming: "defer" });
    if (launch.inside !== undefined && nic.namespace !== undefined) await answerDhcp(guest, launch.inside);
    const arrival = await Arrival.open(guest, here, { around });
    return {
      has: arrival.has,
      take: (records) => arrival.take(records),
      finish: (signal) => arrival.finish(signal),
      close: () => arrival.close().finally(() => views.close()),
    };
  } catch (error) {
    await end(guest);
    await here.then(closeHere).catch(() => undefined);
    await views.close();
    throw error;
  }
}

async function isWaiting(guest: Guest): Promise<boolean> {
  if (!(await isLive(guest))) return false;
  return withQmp(guest, guestFiles(guest).qmp, async (qmp) => {
    const [{ status }, migration] = [await queryStatus(qmp), await queryMigration(qmp)];
    return status === "paused" && migration.status === "completed";
  });
}

const [gzipped, gunzipped] = [promisify(gzip), promisify(gunzip)];

async function seedOf(files: ReturnType<typeof guestFiles>, { inside }: Launch): Promise<Shape["seed"]> {
  const bytes = await gzipped(await readFile(inside === undefined ? files.seed : files.originSeed));
  return { id: await readFile(files.seedId, "utf8").catch(() => ""), gzip: bytes.toString("base64") };
}

const cancelMillis = 30_000;
const pingMillis = 1_000;
const trimMillis = 30_000;
/** QEMU's versions that count what is left as 7.2 does. */
const [oldest, newest] = [
  [6, 2],
  [7, 2],
] as const;

async function qemuVersion(guest: Guest): Promise<[number, number]> {
  const schema = z.object({ qemu: z.object({ major: z.int(), minor: z.int() }) });
  const { qemu } = schema.parse(await withQmp(guest, guestFiles(guest).qmp, (qmp) => qmp.execute("query-version")));
  return [qemu.major, qemu.minor];
}

function isKnown([major, minor]: [number, number]): boolean {
  const number = major * 1000 + minor;
  return number >= oldest[0] * 1000 + oldest[1] && number <= newest[0] * 1000 + newest[1];
}

function parseShape(text: string): Shape {
  const parsed = shapeSchema.safeParse(JSON.parse(text));
  if (parsed.success) return parsed.data;
  throw new CloudletError("UNSUPPORTED", `the running guest is described in a way that is not understood here: ${parsed.error.message}`);
}

/** What a guest that runs on one node needs to run on this one; returns how it would execute. */
async function mustFit(guest: Guest, { launch, processor }: Shape): Promise<Launch["accelerator"]> {
  const { accelerator } = await probeAcceleration();
  const refuse = (why: string): never => {
    throw new CloudletError("UNSUPPORTED", `guest ${guest.name} cannot run on here: ${why}`);
  };
  if (accelerator !== launch.accelerator) refuse(`it runs with ${launch.accelerator}, and this node has ${accelerator}`);
  if (processor !== undefined && processor !== (await processorOf())) refuse("this node has another processor");
  return accelerator;
}

async function processorOf(): Promise<string> {
  const text = await readFile("/proc/cpuinfo", "utf8");
  const lines = [/^model name.*$/m, /^flags.*$/m].map((line) => line.exec(text)?.[0] ?? "");
  return createHash("sha256").update(lines.join("\n")).digest("hex");
}

/** Disks as they would be before anything was written to them. */
async function makeFiles(guest: Guest, { diskBytes, volumeBytes }: Shape): Promise<void> {
  await createOverlay(guestFiles(guest).disk, guest.basePath, diskBytes / 1024 ** 2);
  for (const [index, { id, hostPath }] of guest.volumes.entries()) {
    const bytes = volumeBytes[index];
    if (bytes === undefined) throw new CloudletError("INTEGRITY", `nothing is known of volume ${id} of guest ${guest.name}`);
    await rm(hostPath, { force: true });
    await mkdir(dirname(hostPath), { recursive: true, mode: 0o755 });
    const file = await open(hostPath, "w", 0o600);
    await file.truncate(bytes).finally(() => file.close());
  }
}

/** In the order in which records number them. */
function filesOf({ disk, memory }: CommonImages): string[] {
  return memory === undefined ? [disk] : [disk, memory];
}

interface Views {
  paths: string[];
  close(): Promise<void>;
}

async function openViews(files: readonly string[], signal: AbortSignal): Promise<Views> {
  const opened = await Promise.allSettled(
    files.map(async (file) => openRawView(file, { format: formatSchema.parse((await diskInfo(file)).format), signal })),
  );
  const views = opened.flatMap((it) => (it.status === "fulfilled" ? [it.value] : []));
  const close = async (): Promise<void> => void (await Promise.all(views.map((view) => view.close())));
  const failed = opened.find((it) => it.status === "rejected");
  if (failed === undefined) return { paths: views.map(({ path }) => path), close };
  await close();
  throw failed.reason;
}

const formatSchema = z.enum(["qcow2", "raw", "vmdk", "vhdx"]);
