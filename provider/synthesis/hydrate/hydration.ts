import type { CloudletError } from "../../core/errors.ts";
import type { ArrivingLayer } from "../arrivingLayer.ts";
import { type ImageName, imageNames } from "../layerFiles.ts";
import { zeroBlock } from "../blockIndex.ts";
import type { HydratorConfig, HydratorStatus } from "./config.ts";
import type { ArrivingPack } from "./arrivingPack.ts";
import { Fetcher } from "./fetcher.ts";
import { LayerReads } from "./layerReads.ts";
import type { NbdExport } from "./nbdConnection.ts";

const silentMillis = 3_000;

export interface HydrationOptions {
  layer: ArrivingLayer;
  /** Absent where the layer is whole. */
  pack: ArrivingPack | undefined;
  offers(): HydratorConfig["offers"];
  /** Bytes that an earlier life of the process had transferred. */
  transferredBefore: number;
  record: boolean;
}

/** A layer that is coming and is read meanwhile. */
export class Hydration {
  readonly reads: LayerReads;
  readonly #options: HydrationOptions;
  readonly #fetcher: Fetcher;
  readonly #missing: Set<number>;
  readonly #chunksOf: Record<ImageName | "files", ReadonlySet<number>>;
  #transferred: number;
  #heardAt = Date.now();
  #trouble: CloudletError | undefined;
  #complete: boolean;

  constructor(options: HydrationOptions) {
    const { layer, pack } = options;
    this.#options = options;
    this.#transferred = options.transferredBefore;
    this.#complete = pack === undefined;
    this.#missing = new Set(layer.missing());
    this.#chunksOf = chunksOf(layer);
    this.#fetcher = new Fetcher({
      pack: layer.overlay.manifest.pack,
      sink: {
        missing: () => layer.missing(),
        accept: async (chunk, compressed) => {
          await pack?.write(chunk, compressed);
          await layer.accept(chunk, compressed);
        },
      },
      offers: () => options.offers(),
      arrived: (chunk) => {
        this.#missing.delete(chunk);
        this.reads.arrived(chunk);
      },
      bytesReceived: (count) => {
        this.#transferred += count;
        this.#heardAt = Date.now();
      },
      trouble: (error) => (this.#trouble = error),
    });
    this.reads = new LayerReads(layer, (chunk) => this.#fetcher.urge(chunk));
  }

  /** Returns once nothing is missing and all of it is durable. */
  async run(signal: AbortSignal): Promise<void> {
    const { layer, pack } = this.#options;
    // a guest is resumed from these before it reads anything
    for (const chunk of this.#chunksOf.files) this.#fetcher.urge(chunk);
    await this.#fetcher.run(signal);
    if (pack !== undefined) {
      await layer.complete();
      await pack.complete();
    }
    this.#complete = true;
  }

  exports(): NbdExport[] {
    const { layer, record } = this.#options;
    const names = imageNames.filter((name) => layer.fileBytes(name) > 0);
    return names.map((name) => ({
      name,
      bytes: layer.fileBytes(name),
      read: (offset, length, signal) => {
        if (record) this.reads.record(name, { offset, length });
        return this.reads.read(name, { offset, length }, signal);
      },
    }));
  }

  status(): HydratorStatus {
    const { chunks, bytes: total } = this.#options.layer.overlay.manifest.pack;
    const isWhole = (part: ImageName | "files"): boolean => [...this.#chunksOf[part]].every((chunk) => !this.#missing.has(chunk));
    const lacking = [...this.#missing].reduce((sum, chunk) => sum + (chunks[chunk]?.bytes ?? 0), 0);
    const pending = this.reads.pendingSinceMillis;
    return {
      present: total - lacking,
      total,
      transferred: this.#transferred,
      ...this.#state(),
      ...(pending !== undefined && { pendingSinceMillis: pending }),
      whole: { files: isWhole("files"), disk: isWhole("disk"), memory: isWhole("memory") },
    };
  }

  #state(): Pick<HydratorStatus, "state" | "reason" | "silentSinceMillis"> {
    if (this.#complete) return { state: "complete", reason: "" };
    const trouble = this.#trouble;
    if (trouble === undefined) return { state: "coming", reason: "" };
    // a short break is nothing that a guest must be held for
    if (trouble.code === "UNREACHABLE" && Date.now() - this.#heardAt < silentMillis) return { state: "coming", reason: trouble.message };
    return { state: trouble.code === "UNREACHABLE" ? "waiting" : "failed", reason: trouble.message, silentSinceMillis: this.#heardAt };
  }
}

/** Which chunks hold what. */
function chunksOf({ overlay }: ArrivingLayer): Record<ImageName | "files", ReadonlySet<number>> {
  const { blockChunks, images, manifest } = overlay;
  const chunkOfBlock = blockChunks.flatMap(({ chunk, blocks }) => Array<number>(blocks).fill(chunk));
  const ofImage = (name: ImageName): ReadonlySet<number> => {
    const found = new Set<number>();
    for (const block of images[name]?.stored ?? []) {
      const chunk = block === zeroBlock ? undefined : chunkOfBlock[block];
      if (chunk !== undefined) found.add(chunk);
    }
    return found;
  };
  return { files: new Set(manifest.files.flatMap(({ chunks }) => chunks)), disk: ofImage("disk"), memory: ofImage("memory") };
}
