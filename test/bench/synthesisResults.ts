import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { applications, type Application } from "./workload.ts";

const application = z.enum(Object.keys(applications) as [Application, ...Application[]]);
const ways = ["overlay remote", "overlay local", "full image, boot", "full state, resume"] as const;

const cellSchema = z.object({
  overlay: application,
  /** 0 = as fast as it goes. */
  mbit: z.number(),
  way: z.enum(ways),
  rung: z.string(),
  bytes: z.number(),
  floorSeconds: z.number(),
  firstReplySeconds: z.number(),
  totalSeconds: z.number(),
});
/** One start. */
export type Cell = z.infer<typeof cellSchema>;

const sealedSchema = z.object({
  overlay: application,
  packBytes: z.number(),
  memoryBytes: z.number(),
  diskBytes: z.number(),
  streamBytes: z.number(),
  buildSeconds: z.number(),
  quickSeconds: z.number(),
});
/** What an overlay is, beside other ways to pack the same blocks. */
export type Sealed = z.infer<typeof sealedSchema>;

const resultsSchema = z.object({ cells: z.array(cellSchema), overlays: z.array(sealedSchema) });

/** Results in a file beside the report: a run that is cut short loses nothing, and one of a few cells replaces just those. */
export class SynthesisResults {
  readonly #directory: string;
  #cells: Cell[];
  #overlays: Sealed[];

  private constructor(directory: string, { cells, overlays }: z.infer<typeof resultsSchema>) {
    this.#directory = directory;
    this.#cells = cells;
    this.#overlays = overlays;
  }

  static async open(directory: string): Promise<SynthesisResults> {
    await mkdir(directory, { recursive: true });
    const text = await readFile(join(directory, "synthesis.json"), "utf8").catch(() => '{ "cells": [], "overlays": [] }');
    return new SynthesisResults(directory, resultsSchema.parse(JSON.parse(text)));
  }

  async sealed(sealed: Sealed): Promise<void> {
    this.#overlays = [...this.#overlays.filter(({ overlay }) => overlay !== sealed.overlay), sealed];
    await this.#write();
  }

  async cell(cell: Cell): Promise<void> {
    const key = ({ overlay, way, mbit }: Cell): string => [overlay, way, mbit].join();
    this.#cells = [...this.#cells.filter((other) => key(other) !== key(cell)), cell];
    await this.#write();
  }

  /** In the order of the report. */
  get cells(): Cell[] {
    const rank = ({ overlay, way, mbit }: Cell): number =>
      (application.options.indexOf(overlay) * ways.length + Math.min(ways.indexOf(way), 2)) * 1e6 +
      (mbit || 1e5) * 2 +
      ways.indexOf(way) / 10;
    return this.#cells.toSorted((one, other) => rank(one) - rank(other));
  }

  get overlays(): Sealed[] {
    const rank = ({ overlay }: Sealed): number => application.options.indexOf(overlay);
    return this.#overlays.toSorted((one, other) => rank(one) - rank(other));
  }

  async #write(): Promise<void> {
    const { overlays, cells } = this;
    await writeFile(join(this.#directory, "synthesis.json"), `${JSON.stringify({ overlays, cells }, null, 1)}\n`);
  }
}
