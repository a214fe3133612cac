import { z } from "zod";
import { handoffEventSchema, moveReportSchema } from "../handoffProtocol.ts";
import { jobErrorSchema } from "../jobProtocol.ts";
import { digestSchema, kindSchema, portSchema } from "../protocol.ts";
import { recipeSchema } from "./recipe.ts";

/** Where a move stands on the target, as the source sees it. */
export const arrivalSchema = z.object({
  phase: z.enum(["prepared", "sealed", "starting", "ready", "failed"]),
  epoch: z.int(),
  kind: kindSchema,
  /** Blobs that the target's store lacks. */
  needs: z.array(digestSchema),
  seal: digestSchema.optional(),
  error: jobErrorSchema.optional(),
  /** Pieces that come before the guest has stopped count for what comes then. */
  takesAhead: z.boolean().optional(),
});
export type Arrival = z.infer<typeof arrivalSchema>;

/** What a move will take up on the target's disk, as far as that is known before it begins. */
export const roomSchema = z.object({ bytes: z.int().min(0) });
export const recipesSchema = z.object({ mode: z.enum(["cold", "state"]), parts: z.array(recipeSchema).max(64) });
export const missingSchema = z.object({ missing: z.array(digestSchema) });
export const sealRequestSchema = z.object({ seal: digestSchema });
export const activateSchema = z.object({ seal: digestSchema, epoch: z.int(), live: z.boolean().default(false) });
export type Activation = z.infer<typeof activateSchema>;
/** `givenUp`: the target has lost what was sealed, and can never start it at this epoch. `ports`: what is published there. */
export const activatedSchema = z.object({ givenUp: z.boolean().default(false), ports: z.array(portSchema).default([]) });
export type Activated = z.infer<typeof activatedSchema>;
/** A running guest, in its driver's own words, and the sizes of the cloudlet's volumes in MiB. */
export const liveSchema = z.object({ shape: z.string().max(32 * 1024 * 1024), volumes: z.array(z.int()) });
export type LiveStart = z.infer<typeof liveSchema>;
/** How long the target was still busy with a body when all of it had come. */
export const takenSchema = z.object({ busyMillis: z.number().default(0) });
export type Taken = z.infer<typeof takenSchema>;
export const completeSchema = z.object({
  report: moveReportSchema,
  /** Everything that is known of the cloudlet's handoffs, this one included. */
  history: z.array(handoffEventSchema).default([]),
});
export type Completion = z.infer<typeof completeSchema>;

/*
 * The data port of a target agent, while a move is expected or blobs are offered (TLS, certificate pinned, `Authorization: Bearer TOKEN`, `?id=CLOUDLET`):
 *   GET  /v1/blobs/DIGEST       a blob that this node offers, with the offer's token and no `id`; HEAD and one Range too
 *   GET  /v1/arrival            Arrival
 *   POST /v1/room               whether there is room; of a move that does not fit nothing stays
 *   PUT  /v1/blobs/DIGEST       a blob of the store, verified
 *   POST /v1/layer              recombine the cloudlet's overlay, whose blobs are there by now
 *   PUT  /v1/recipes            recipes -> missing digests
 *   PUT  /v1/pieces             zstd stream of frames
 *   POST /v1/live               a running guest will come: start its QEMU, which waits; 200 with what is here of it from before
 *   PUT  /v1/rounds/N           zstd stream of the driver's records; 200 and Taken once all of it is in place
 *   DELETE /v1/live             nothing more will come, whatever has
 *   POST /v1/seal               verify everything, make the stopped guest; of a live one: it is loaded and would run
 *   POST /v1/activate           own the epoch, start; 200 at once, then watch the arrival; or the epoch is given up
 *   POST /v1/complete           the source has seen the application answer; the move's report
 */
