import { existsSync } from "node:fs";
import { chown } from "node:fs/promises";
import { readJson, writeDurably } from "../../agent/durable.ts";
import { run } from "../../agent/process.ts";
import { guestUser } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import { ArrivingLayer } from "../arrivingLayer.ts";
import { layerFiles } from "../layerFiles.ts";
import { ArrivingPack } from "./arrivingPack.ts";
import { type HydratorConfig, hydratorConfigSchema, hydratorStatusSchema } from "./config.ts";
import { Hydration } from "./hydration.ts";
import { NbdServer } from "./nbdServer.ts";
import { StatusFile } from "./statusFile.ts";

const recordMillis = 1_000;

/**
 * The process that brings a layer here and serves it to guests meanwhile. Ends on SIGTERM, reads its configuration again
 * on SIGHUP; killed at any moment and started again, it goes on from what was durable.
 */
export async function runHydrator(configFile: string): Promise<void> {
  // hypervisors run as a user of their own, and the layer's directory says who gets there
  process.umask(0o022);
  const ending = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) process.on(name, () => ending.abort());
  let config = await readConfig(configFile);
  process.on("SIGHUP", () => void readConfig(configFile).then((read) => (config = read), reportAndGoOn));
  await hydrate(() => config, ending.signal);
}

async function hydrate(current: () => HydratorConfig, signal: AbortSignal): Promise<void> {
  const { layer: directory, digest, manifest, index, below, parent, record, socket, statusFile } = current();
  const layer = await ArrivingLayer.open({ directory, digest, manifest, index, below, parent });
  const packFile = layerFiles(directory).pack;
  const comes = layer.missing().length > 0 || existsSync(packFile);
  const pack = comes ? await ArrivingPack.open(packFile, layer.overlay.manifest.pack) : undefined;
  // a status is no more than a report: one that cannot be read is forgotten
  const before = await readJson(statusFile, hydratorStatusSchema).catch(() => undefined);
  const hydration = new Hydration({
    layer,
    pack,
    offers: () => current().offers,
    transferredBefore: before?.transferred ?? 0,
    record: record !== undefined,
  });
  const status = new StatusFile(statusFile, () => hydration.status());
  await status.write();
  const server = await NbdServer.listen(socket, hydration.exports());
  await admitGuests(socket);
  const recording = record === undefined ? undefined : setInterval(() => void writeTouched(record, hydration), recordMillis);
  try {
    await hydration.run(signal).catch(reportUnless(signal));
    await status.write();
    if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve));
  } finally {
    clearInterval(recording);
    await server.close();
    if (record !== undefined) await writeTouched(record, hydration);
    await layer.close();
    await pack?.close();
    await status.close();
  }
}

async function readConfig(file: string): Promise<HydratorConfig> {
  const config = await readJson(file, hydratorConfigSchema);
  if (config === undefined) throw new CloudletError("NOT_FOUND", `there is no ${file}`);
  return config;
}

/** QEMU connects anew after this process was started again, and then has only its own user's rights. */
async function admitGuests(socket: string): Promise<void> {
  if (process.getuid?.() !== 0) return;
  const { stdout } = await run(["getent", "passwd", guestUser], { okCodes: [0, 2] });
  const [, , uid, gid] = stdout.split(":");
  if (uid !== undefined && gid !== undefined) await chown(socket, Number(uid), Number(gid));
}

function writeTouched(file: string, hydration: Hydration): Promise<void> {
  return writeDurably(file, JSON.stringify(hydration.reads.touched), 0o600).catch(reportAndGoOn);
}

function reportUnless(signal: AbortSignal): (error: unknown) => void {
  return (error) => {
    if (!signal.aborted) throw error;
  };
}

function reportAndGoOn(error: unknown): void {
  process.stderr.write(`${error instanceof Error ? error.message : String(error)}\n`);
}
