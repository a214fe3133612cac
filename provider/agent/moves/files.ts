import { mkdir, rm, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { readJson, syncDirectory, writeDurably } from "../durable.ts";
import { budgetSchema, moveReportSchema } from "../handoffProtocol.ts";
import { jobErrorSchema } from "../jobProtocol.ts";
import { digestSchema, guestName, moveTargetSchema } from "../protocol.ts";
import { recipeSchema } from "./recipe.ts";

/** What the source writes down of a move. */
const departureSchema = z.object({
  epoch: z.int(),
  self: z.string(),
  target: moveTargetSchema,
  route: moveReportSchema.shape.route,
  seal: digestSchema.optional(),
  mode: z.enum(["cold", "state", "live"]),
  budget: budgetSchema.optional(),
  beganAt: z.number(),
  stoppedAt: z.number().optional(),
  endedAt: z.number().optional(),
  bytesSent: z.int(),
  bytesSupplied: moveReportSchema.shape.bytesSupplied,
  bytesAhead: moveReportSchema.shape.bytesAhead,
  bytesTotal: z.int(),
  rounds: moveReportSchema.shape.rounds,
  predicted: moveReportSchema.shape.predicted,
});
export type Departure = z.infer<typeof departureSchema>;

/** What the target writes down of a move. */
const arrivalFileSchema = z.object({
  epoch: z.int(),
  from: z.string(),
  tokens: z.array(digestSchema).describe("SHA-256 of the one-time tokens, newest first."),
  phase: z.enum(["prepared", "sealed", "starting", "ready", "failed"]),
  mode: z.enum(["cold", "state", "live"]).optional(),
  parts: z.array(recipeSchema).optional(),
  /** Of a live move: sizes of the cloudlet's volumes in MiB, in their order. */
  volumes: z.array(z.int()).optional(),
  seal: digestSchema.optional(),
  error: jobErrorSchema.optional(),
});
export type ArrivalFile = z.infer<typeof arrivalFileSchema>;

/** What a node keeps of its moves until they are over. Not in the guests' own directories, which a driver may empty. */
export class MoveFiles {
  readonly #root: string;

  constructor(root: string) {
    this.#root = join(root, "moves");
  }

  departure(id: string): Promise<Departure | undefined> {
    return readJson(this.#departure(id), departureSchema);
  }

  writeDeparture(id: string, departure: Departure): Promise<void> {
    return this.#write(id, this.#departure(id), departure);
  }

  async forgetDeparture(id: string): Promise<void> {
    await rm(this.#departure(id), { force: true });
    await this.#tidy(id);
  }

  arrival(id: string): Promise<ArrivalFile | undefined> {
    return readJson(this.#arrival(id), arrivalFileSchema);
  }

  writeArrival(id: string, arrival: ArrivalFile): Promise<void> {
    return this.#write(id, this.#arrival(id), arrival);
  }

  /** Where a cloudlet is put together. */
  incoming(id: string): string {
    return join(this.#directory(id), "incoming");
  }

  /** The record of the arrival goes first: what is left without one is nobody's. */
  async forgetArrival(id: string): Promise<void> {
    await rm(this.#arrival(id), { force: true });
    await rm(this.incoming(id), { recursive: true, force: true });
    await this.#tidy(id);
  }

  async forget(id: string): Promise<void> {
    await this.forgetArrival(id);
    await this.forgetDeparture(id);
  }

  async #write(id: string, file: string, content: object): Promise<void> {
    if ((await mkdir(this.#directory(id), { recursive: true, mode: 0o700 })) !== undefined) await syncDirectory(this.#root);
    await writeDurably(file, JSON.stringify(content), 0o600);
  }

  async #tidy(id: string): Promise<void> {
    await rmdir(this.#directory(id)).catch(() => undefined);
  }

  #directory(id: string): string {
    return join(this.#root, guestName(id));
  }

  #departure(id: string): string {
    return join(this.#directory(id), "departure.json");
  }

  #arrival(id: string): string {
    return join(this.#directory(id), "arrival.json");
  }
}
