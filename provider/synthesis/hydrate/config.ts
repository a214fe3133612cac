import { z } from "zod";
import { digestSchema, offerSchema } from "../../agent/protocol.ts";
import { imageNames } from "../layerFiles.ts";

/** What a hydrator is to do; its file holds tokens. */
export const hydratorConfigSchema = z.strictObject({
  /** Directory of the layer. */
  layer: z.string(),
  /** The overlay: digest of its manifest, and where manifest and index are. */
  digest: digestSchema,
  manifest: z.string(),
  index: z.string(),
  below: z.partialRecord(z.enum(imageNames), z.strictObject({ file: z.string(), format: z.string() })),
  /** Directory of the layer of the overlay's parent. */
  parent: z.string().optional(),
  /** Unix socket at which the layer's files are served: exports `disk` and `memory`. */
  socket: z.string().max(107, "is longer than the path of a unix socket may be"),
  statusFile: z.string(),
  /** Tried in order. */
  offers: z.array(offerSchema),
  /** Of a layer that is whole: where to write which blocks were read, in the order of their first read. */
  record: z.string().optional(),
});
export type HydratorConfig = z.infer<typeof hydratorConfigSchema>;

export const hydratorStatusSchema = z.object({
  /** Bytes of the pack that are here and verified, and in all. */
  present: z.int(),
  total: z.int(),
  /** Bytes that came over the network, over all lives of the process. */
  transferred: z.int(),
  /** waiting: the source is silent. failed: no source has what is missing. Both go on by themselves when that changes. */
  state: z.enum(["coming", "waiting", "complete", "failed"]),
  reason: z.string(),
  /** Since when a guest's oldest read has been waiting, and since when nothing has come; milliseconds since 1970. */
  pendingSinceMillis: z.int().optional(),
  silentSinceMillis: z.int().optional(),
  /** What can be used already without waiting for anything: state and seed, all of the disk, all of the memory. */
  whole: z.object({ files: z.boolean(), disk: z.boolean(), memory: z.boolean() }),
});
export type HydratorStatus = z.infer<typeof hydratorStatusSchema>;
