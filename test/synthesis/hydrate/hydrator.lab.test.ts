import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { copyFile, mkdtemp, open, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { livePid, waitGone } from "../../../provider/agent/detached.ts";
import { layerFiles } from "../../../provider/synthesis/layerFiles.ts";
import { materialise } from "../../../provider/synthesis/materialise.ts";
import type { HydratorConfig } from "../../../provider/synthesis/hydrate/config.ts";
import { hydratorStatus, startHydrator, stopHydrator } from "../../../provider/synthesis/hydrate/control.ts";
import { seal } from "../../../provider/synthesis/seal.ts";
import type { Sealed } from "../../../provider/synthesis/sealTypes.ts";
import { type World, layerOptions, makeWorld, progress } from "../makeImages.ts";
import { readOnce } from "./nbdClient.ts";
import { Source } from "./source.ts";

const execute = promisify(execFile);
const program = [process.execPath, join(import.meta.dirname, "program.ts")];
const patient = { timeout: 30_000, interval: 20 };

let common: string;
let world: World;
let sealed: Sealed;
/** The layer as a node makes it that had the pack from the beginning. */
let local: string;
let directory: string;
let source: Source;

beforeAll(async () => {
  common = await mkdtemp(join(tmpdir(), "hydrate-"));
  local = join(common, "local");
  world = await makeWorld(join(common, "world"));
  sealed = await seal(world.input, progress);
  await materialise(layerOptions(world, sealed, local), progress);
});

afterAll(async () => rm(common, { recursive: true }));

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "hydrator-"));
  source = await offering();
});

afterEach(async () => {
  await stopHydrator(place());
  source.close();
  await rm(directory, { recursive: true });
});

const place = (): string => join(directory, "hydrator");
const layer = (): string => join(directory, "arriving");
const uri = (name: string): string => `nbd+unix:///${name}?socket=${config().socket}`;

const packPath = (): string => sealed.blobs[2]?.path ?? "";

async function offering(path = packPath(), node = "gw1"): Promise<Source> {
  return Source.offering({ digest: sealed.manifest.pack.digest, path }, node);
}

function config(changes: Partial<HydratorConfig> = {}): HydratorConfig {
  const { digest, manifest, index, below } = layerOptions(world, sealed);
  return {
    layer: layer(),
    digest,
    manifest,
    index,
    below,
    socket: join(directory, "nbd.sock"),
    statusFile: join(directory, "status.json"),
    offers: [source.offer],
    ...changes,
  };
}

const start = (changes: Partial<HydratorConfig> = {}): Promise<void> => startHydrator(place(), config(changes), program);
const state = async (): Promise<string | undefined> => (await hydratorStatus(place()))?.state;
const complete = (): Promise<void> => expect.poll(state, patient).toBe("complete");

/** The layer's files are those that a node makes which had the pack from the beginning. */
async function expectWhole(): Promise<void> {
  const [came, made] = [layerFiles(layer()), layerFiles(local)];
  for (const name of ["disk", "memory", "state", "seed", "manifest"] as const)
    expect((await readFile(came[name])).equals(await readFile(made[name])), name).toBe(true);
  expect((await readFile(came.pack)).equals(await readFile(packPath()))).toBe(true);
}

/** Where the data of the last block of the memory's file is. */
async function lastBlock(): Promise<{ offset: number; length: number; bytes: Buffer }> {
  const content = await readFile(layerFiles(local).memory);
  return { offset: content.length - 4096, length: 4096, bytes: content.subarray(-4096) };
}

it("brings a layer here, and serves it to QEMU meanwhile", async () => {
  source.link.bytesPerSecond = 2_000_000;
  await start();
  await writeFile(join(directory, "disk.raw"), world.disk);
  await writeFile(join(directory, "memory.raw"), world.memory);
  for (const name of ["disk", "memory"]) {
    const { stdout } = await execute("qemu-img", ["compare", "-f", "raw", "-F", "qcow2", join(directory, `${name}.raw`), uri(name)]);
    expect(stdout).toContain("identical");
  }
  await complete();
  await expectWhole();
  const { pack } = sealed.manifest;
  expect(await hydratorStatus(place())).toMatchObject({ present: pack.bytes, total: pack.bytes, transferred: pack.bytes, running: true });
});

it("brings what somebody waits for before the rest", async () => {
  source.link.bytesPerSecond = 1_000_000;
  const last = await lastBlock();
  await start();
  expect((await readOnce(config().socket, "memory", last)).equals(last.bytes)).toBe(true);
  const status = await hydratorStatus(place());
  expect(status?.state).toBe("coming");
  expect(status?.present).toBeLessThan((status?.total ?? 0) / 2);
});

it("has state and seed before all else, and says so", async () => {
  source.link.bytesPerSecond = 1_000_000;
  await start();
  await expect.poll(async () => (await hydratorStatus(place()))?.whole, patient).toEqual({ files: true, disk: false, memory: false });
  expect((await readFile(layerFiles(layer()).state)).equals(await readFile(world.input.files[0]?.path ?? ""))).toBe(true);
  expect(await state()).toBe("coming");
});

describe("a source that fails", { timeout: 60_000 }, () => {
  it("falls silent: reads wait, the status says since when, and all goes on when it speaks again", async () => {
    source.link.bytesPerSecond = 4_000_000;
    const last = await lastBlock();
    source.link.silent = true;
    await start();
    const reading = readOnce(config().socket, "memory", last);
    await expect.poll(state, patient).toBe("waiting");
    const status = await hydratorStatus(place());
    expect(status?.reason).toMatch(/gw1/);
    expect(Date.now() - (status?.silentSinceMillis ?? 0)).toBeGreaterThan(2_900);
    expect(status?.pendingSinceMillis).toBeLessThanOrEqual(Date.now());
    source.link.silent = false;
    expect((await reading).equals(last.bytes)).toBe(true);
    await complete();
    expect((await hydratorStatus(place()))?.pendingSinceMillis).toBeUndefined();
    await expectWhole();
  });

  it("is cut in the middle of chunks: what came before counts", async () => {
    source.link.bytesPerSecond = 3_000_000;
    await start();
    for (const after of [0.2, 0.5, 0.8]) {
      await expect.poll(() => source.link.carried, patient).toBeGreaterThan(sealed.manifest.pack.bytes * after);
      source.link.cut();
    }
    await complete();
    await expectWhole();
    const asked = source.asked.reduce((sum, { start: from, end }) => sum + end - from + 1, 0);
    // what was on its way at a cut is asked for again, and no more than that
    expect(asked).toBeLessThan(sealed.manifest.pack.bytes + 3 * 512 * 1024);
  });

  it("refuses some requests that are in order: it is asked again", async () => {
    source.bad = 3;
    await start();
    const states = new Set<string | undefined>();
    await expect.poll(async () => states.add(await state()), patient).toContain("complete");
    expect(states).not.toContain("failed");
    await expectWhole();
  });

  it("sends wrong bytes: they are not used, its name is told, and another node is asked", async () => {
    const bad = join(directory, "bad.pack");
    await copyFile(packPath(), bad);
    const handle = await open(bad, "r+");
    const place = (sealed.manifest.pack.chunks.at(-1)?.offset ?? 0) + 9;
    const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, place);
    await handle.write(Buffer.from([(buffer[0] ?? 0) ^ 1]), 0, 1, place);
    await handle.close();
    const liar = await offering(bad, "gw9");
    try {
      await start({ offers: [liar.offer] });
      await expect.poll(state, patient).toBe("failed");
      expect((await status()).reason).toMatch(/gw9 sent something else than chunk \d+/);
      await start({ offers: [liar.offer, source.offer] });
      await complete();
      await expectWhole();
    } finally {
      liar.close();
    }
  });

  it("does not know the token any more: a new offer is taken without an end of the process", async () => {
    await start({ offers: [{ ...source.offer, token: "an-old-one" }] });
    await expect.poll(state, patient).toBe("failed");
    expect((await status()).reason).toMatch(/gw1 no longer offers it/);
    const pid = await livePid(place(), "hydrate");
    await start();
    await complete();
    expect(await livePid(place(), "hydrate")).toBe(pid);
  });

  it("is another machine than it should be: nothing is asked of it", async () => {
    await start({ offers: [{ ...source.offer, certificate: "0".repeat(64) }] });
    await expect.poll(state, patient).toBe("failed");
    expect((await status()).reason).toMatch(/certificate/);
    expect(source.asked).toEqual([]);
  });

  it("cannot be reached directly: the operator's relay is used", async () => {
    const { offer } = source;
    await start({ offers: [{ ...offer, addresses: ["127.0.0.2"], port: 1, relayPort: offer.port }] });
    await complete();
  });
});

const status = async () => (await hydratorStatus(place())) ?? { state: "none", reason: "" };

describe("a hydrator that is killed", { timeout: 60_000 }, () => {
  it("goes on from what was durable, as often as it happens", async () => {
    source.link.bytesPerSecond = 1_500_000;
    for (const millis of [300, 50, 900]) {
      await start();
      const read = readOnce(config().socket, "disk", { offset: 0, length: 4 });
      expect(String(await read)).toMatch(/^QFI/);
      await new Promise((resolve) => setTimeout(resolve, millis));
      const pid = await livePid(place(), "hydrate");
      if (pid !== undefined) process.kill(pid, "SIGKILL");
      expect(await waitGone(place(), 20_000, "hydrate")).toBe(true);
      expect((await hydratorStatus(place()))?.running).toBe(false);
    }
    await start();
    expect((await hydratorStatus(place()))?.present).toBeGreaterThan(0);
    await complete();
    await expectWhole();
  });

  it("ends when it is told to, and what has arrived stays", async () => {
    source.link.bytesPerSecond = 1_000_000;
    await start();
    await expect.poll(async () => (await hydratorStatus(place()))?.present, patient).toBeGreaterThan(600_000);
    await stopHydrator(place());
    await stopHydrator(place());
    const stopped = await hydratorStatus(place());
    expect(stopped?.running).toBe(false);
    await start();
    expect((await hydratorStatus(place()))?.present).toBeGreaterThanOrEqual(stopped?.present ?? 0);
  });
});

it("that cannot start says why", async () => {
  await writeFile(join(directory, "other"), "{}");
  await expect(start({ manifest: join(directory, "other") })).rejects.toThrow(/manifest/);
});

it("records which blocks were read, in the order of their first read", async () => {
  const record = join(directory, "touched.json");
  await start({ layer: local, offers: [], record });
  expect(await state()).toBe("complete");
  const view = ["-f", "qcow2", "-r"];
  const blocks = [30, 17, 18, 30, 1000];
  for (const block of blocks) await execute("qemu-io", [...view, "-c", `read ${String(block * 4096)} 4096`, uri("memory")]);
  await stopHydrator(place());
  const touched: unknown = JSON.parse(await readFile(record, "utf8"));
  expect(touched).toEqual([30, 17, 18].map((block) => ({ image: "memory", block })));
  expect(existsSync(layerFiles(local).pack)).toBe(false);
});
