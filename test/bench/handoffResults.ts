import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";

export const ways = ["handoff", "return", "preseeded", "live migration", "suspend, copy, resume", "full copy, boot"] as const;
export type Way = (typeof ways)[number];

const measuredSchema = z.object({
  totalSeconds: z.number(),
  /** Longest time without an answer, as the subscriber saw it. */
  gapSeconds: z.number(),
  /** When that began, from the begin of the move: not only the pause takes answers away. */
  gapAtSeconds: z.number(),
  /** On the link, towards where it goes. */
  bytes: z.number(),
  /** Answers that were older than one before. */
  wentBack: z.number(),
  /** How much memory the guest rewrote in a second, before it moved. */
  rewrittenMegabytes: z.number(),
  /** Of ours: what it said itself. */
  report: z
    .object({
      pauseSeconds: z.number(),
      predictedPauseSeconds: z.number(),
      rounds: z.number(),
      /** Before compression. */
      memoryMegabytes: z.number(),
      diskMegabytes: z.number(),
    })
    .optional(),
});
export type Measured = z.infer<typeof measuredSchema>;

const cellSchema = z.object({
  way: z.enum(ways),
  /** 0 = as fast as it goes. */
  mbit: z.number(),
  /** Added to each round trip. */
  delayMillis: z.number(),
  memoryMib: z.number(),
  outcome: z.union([measuredSchema, z.object({ failed: z.string() })]),
});
/** One move. */
export type Cell = z.infer<typeof cellSchema>;

const resultsSchema = z.object({ cells: z.array(cellSchema) });

/** Results in a file beside the report: a run that is cut short loses nothing, and one of a few cells replaces just those. */
export class HandoffResults {
  readonly #path: string;
  #cells: Cell[];

  private constructor(path: string, cells: Cell[]) {
    this.#path = path;
    this.#cells = cells;
  }

  static async open(directory: string): Promise<HandoffResults> {
    await mkdir(directory, { recursive: true });
    const path = join(directory, "handoff.json");
    const text = await readFile(path, "utf8").catch(() => '{ "cells": [] }');
    return new HandoffResults(path, resultsSchema.parse(JSON.parse(text)).cells);
  }

  /** All that is known, by memory, delay, link and way. */
  get cells(): readonly Cell[] {
    return this.#cells;
  }

  async put(cell: Cell): Promise<void> {
    const key = ({ way, mbit, delayMillis, memoryMib }: Cell): string => [way, mbit, delayMillis, memoryMib].join();
    const rank = ({ way, mbit, delayMillis, memoryMib }: Cell): number[] => [memoryMib, delayMillis, mbit || Infinity, ways.indexOf(way)];
    this.#cells = [...this.#cells.filter((other) => key(other) !== key(cell)), cell].sort((one, other) => {
      const others = rank(other);
      return (
        rank(one)
          .map((value, index) => (value === others[index] ? 0 : value - (others[index] ?? 0)))
          .find((difference) => difference !== 0) ?? 0
      );
    });
    await writeFile(this.#path, `${JSON.stringify({ cells: this.#cells }, null, 1)}\n`);
  }
}
