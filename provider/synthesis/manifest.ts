import { z } from "zod";
import { digestSchema, kindSchema, machineSchema, readySchema } from "../agent/protocol.ts";

/** Grain of every delta: what a guest calls a page and most of its file systems a block. */
export const blockBytes = 4096;

/** Whatever is larger is no manifest, which has about 150 bytes for each chunk. */
export const maxManifestBytes = 64 * 1024 * 1024;

/** One image that an overlay changes: blocks of it are in the pack, all others come from what lies below. */
export const imageDeltaSchema = z.strictObject({
  virtualBytes: z.int().min(0),
  /** Digest of the whole recombined image (`imageDigest`). */
  digest: digestSchema,
  /** Blocks that the overlay holds. */
  blocks: z.int().min(0),
});

export const chunkSchema = z.strictObject({
  offset: z.int().min(0).describe("Where the chunk begins in the pack."),
  bytes: z.int().min(1).describe("Its compressed size."),
  rawBytes: z.int().min(1).describe("Its size once decompressed; more than this is refused while decompressing."),
  digest: digestSchema.describe("SHA-256 of the compressed bytes."),
});
export type Chunk = z.infer<typeof chunkSchema>;

const blobSchema = z.strictObject({ digest: digestSchema, bytes: z.int().min(0) });

/**
 * An overlay: the delta of an application over a base, sealed. Three blobs: this manifest (its digest is the overlay's
 * identity), the index (which block of which image is where in the pack) and the pack (compressed chunks, those that are
 * touched before the first answer first, in the order of their first touch).
 */
export const manifestSchema = z.strictObject({
  /** 2 has differences from the parent; what has none is 1, which older agents read as well. */
  format: z.enum(["cloudlet-overlay/1", "cloudlet-overlay/2"]),
  kind: kindSchema,
  /** The base image's bytes. */
  base: digestSchema,
  /** Manifest of the overlay that lies between this one and the base image: the base's own memory. */
  parent: digestSchema.optional(),
  diskMib: z.int().min(1),
  /** kvm only. */
  machine: machineSchema.optional(),
  /** What the guest in the saved memory believes to be its network. */
  network: z.strictObject({ mac: z.string(), address: z.string() }).optional(),
  ready: readySchema.optional(),
  disk: imageDeltaSchema.optional(),
  memory: imageDeltaSchema.optional(),
  index: blobSchema,
  pack: blobSchema.extend({
    chunks: z.array(chunkSchema),
    /** How many of the first chunks hold what is touched before the first answer. */
    touched: z.int().min(0),
  }),
  /** Files that are used whole, each in chunks of its own: device state and seed (kvm), the delta's tar (lxd). */
  files: z.array(
    z.strictObject({
      name: z.enum(["state", "seed", "delta"]),
      bytes: z.int().min(0),
      digest: digestSchema,
      /** Positions in `pack.chunks`. */
      chunks: z.array(z.int().min(0)),
      /** The chunks hold its difference from the parent's file of this name. */
      difference: z.literal(true).optional(),
    }),
  ),
});
export type Manifest = z.infer<typeof manifestSchema>;
