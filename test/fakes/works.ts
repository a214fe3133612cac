import { createHash } from "node:crypto";
import { copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Hydration, HydratorTask, Works } from "../../provider/agent/synthesis/works.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import { layerFiles } from "../../provider/synthesis/layerFiles.ts";
import { manifestSchema } from "../../provider/synthesis/manifest.ts";
import type { Manifest } from "../../provider/synthesis/manifest.ts";
import type { OverlayIndex, OverlayPaths } from "../../provider/synthesis/overlay.ts";
import type { ReorderInput } from "../../provider/synthesis/reorder.ts";
import type { Sealed, SealInput, Touch } from "../../provider/synthesis/sealTypes.ts";

interface FakeHydrator {
  task: HydratorTask;
  state: Hydration;
}

type Written = Pick<SealInput, "directory" | "kind" | "base" | "parent" | "diskMib" | "machine" | "network" | "touched">;

/** Layers whose files only name their overlay, and hydrators that are told by the test what has arrived. They outlive the agent, like real ones. */
export class FakeWorks implements Works {
  readonly hydrators = new Map<string, FakeHydrator>();
  readonly calls: string[] = [];
  touches: Touch[] = [];
  /** Whether the first part of an overlay comes at once. */
  startable = true;

  async readOverlay(paths: OverlayPaths): Promise<OverlayIndex> {
    const manifest = manifestSchema.parse(JSON.parse(await readFile(paths.manifest, "utf8")));
    return { digest: paths.digest, manifest, images: {}, blockChunks: [], differences: new Uint8Array(0) };
  }

  async materialise({ digest, directory, pack }: OverlayPaths & { directory: string; pack: string }): Promise<void> {
    this.calls.push("materialise");
    if ((await readFile(pack, "utf8")).includes("poison")) throw new CloudletError("INTEGRITY", "the overlay's pack, chunk 0 is damaged");
    await writeLayer(directory, digest);
  }

  verifyLayer(): Promise<number> {
    return Promise.resolve(4096);
  }

  async seal(input: SealInput): Promise<Sealed> {
    this.calls.push("seal");
    return this.#write(input);
  }

  async reorder({ manifest, directory, touched }: ReorderInput): Promise<Sealed> {
    this.calls.push("reorder");
    return this.#write({ ...manifestSchema.parse(JSON.parse(await readFile(manifest, "utf8"))), directory, touched });
  }

  withRawView<T>({ file }: { file: string }, _signal: AbortSignal, work: (rawPath: string) => Promise<T>): Promise<T> {
    return work(file);
  }

  imageFormat(): Promise<string> {
    return Promise.resolve("raw");
  }

  startHydrator(directory: string, task: HydratorTask): Promise<void> {
    this.calls.push("startHydrator");
    const known = this.hydrators.get(directory);
    const offers = task.offers.length > 0 ? task.offers : (known?.task.offers ?? []);
    const state: Hydration = known?.state ?? {
      present: 0,
      total: 100,
      transferred: 0,
      state: "coming",
      reason: "",
      startable: this.startable,
    };
    this.hydrators.set(directory, { task: { ...task, offers }, state });
    return Promise.resolve();
  }

  hydration(directory: string): Promise<Hydration | undefined> {
    return Promise.resolve(this.hydrators.get(directory)?.state);
  }

  stopHydrator(directory: string): Promise<void> {
    this.hydrators.delete(directory);
    return Promise.resolve();
  }

  readonly watchMillis = 10;

  touched(): Promise<Touch[]> {
    return Promise.resolve(this.touches);
  }

  /** What a hydrator says of itself from now on. */
  say(directory: string, change: Partial<Hydration>): void {
    const hydrator = this.hydrators.get(directory);
    if (hydrator === undefined) throw new Error(`no hydrator works in ${directory}`);
    hydrator.state = { ...hydrator.state, ...change };
  }

  /** Hydrators end; waits until there is one again. */
  async lose(): Promise<void> {
    this.hydrators.clear();
    for (const deadline = Date.now() + 5_000; this.hydrators.size === 0; await sleep(20))
      if (Date.now() > deadline) throw new Error("no hydrator was started again");
  }

  /** Everything has come; `pack` is what was put together of it. */
  async arrive(directory: string, pack: string): Promise<void> {
    const hydrator = this.hydrators.get(directory);
    if (hydrator === undefined) throw new Error(`no hydrator works in ${directory}`);
    await writeFile(layerFiles(directory).pack, pack);
    await writeLayer(directory, hydrator.task.digest);
    this.say(directory, { present: 100, transferred: 100, state: "complete" });
  }

  async #write({ directory, kind, base, parent, diskMib, machine, network, touched }: Written): Promise<Sealed> {
    const order = JSON.stringify(touched ?? []);
    const index = await blob(directory, `index of ${base} ${order}`);
    const pack = await blob(directory, `pack of ${base} ${order}`);
    const manifest: Manifest = manifestSchema.parse({
      format: "cloudlet-overlay/1",
      ...{ kind, base, diskMib, machine, network, parent },
      ...(machine && { memory: image(machine.memoryMib), disk: image(diskMib) }),
      index: pick(index),
      pack: { ...pick(pack), chunks: [{ offset: 0, ...pick(pack), rawBytes: 4096 }], touched: 0 },
      files: [],
    });
    const sealed = await blob(directory, JSON.stringify(manifest));
    return { digest: sealed.digest, manifest, blobs: [index, pack, sealed] };
  }
}

async function writeLayer(directory: string, digest: string): Promise<void> {
  await mkdir(directory, { recursive: true });
  const files = layerFiles(directory);
  for (const file of [files.disk, files.memory, files.state, files.seed, files.delta]) await writeFile(file, digest);
  await writeFile(files.manifest, digest);
}

async function blob(directory: string, text: string): Promise<{ digest: string; path: string; bytes: number }> {
  const digest = createHash("sha256").update(text).digest("hex");
  const temporary = join(directory, "making");
  const path = join(directory, digest);
  await writeFile(temporary, text);
  await copyFile(temporary, path);
  await rm(temporary);
  return { digest, path, bytes: Buffer.byteLength(text) };
}

const pick = ({ digest, bytes }: { digest: string; bytes: number }) => ({ digest, bytes });

const image = (mib: number) => ({ virtualBytes: mib * 1024 * 1024, digest: "0".repeat(64), blocks: 1 });
