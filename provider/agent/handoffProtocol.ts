import { z } from "zod";

/** What a move of a running cloudlet may cost. */
export const budgetSchema = z.object({
  maxDowntimeMillis: z.int().min(1),
  maxTotalSeconds: z.int().min(1),
  onExceeded: z.enum(["throttle", "proceed", "abort"]),
});
export type Budget = z.infer<typeof budgetSchema>;

export const defaultBudget: Budget = { maxDowntimeMillis: 1_000, maxTotalSeconds: 600, onExceeded: "throttle" };

/** One pass over what had changed; the guest ran on meanwhile, except in the last one. */
export const roundSchema = z.object({
  pages: z.int().describe("Pages of memory that it sent."),
  blocks: z.int().describe("Blocks of the disk that it sent."),
  rawBytes: z.int().describe("Bytes of those pages and blocks."),
  bytes: z.int().describe("Bytes on the wire, compressed."),
  millis: z.int().describe("How long it took."),
  level: z.int().describe("Level of the compression."),
  throttlePercent: z.int().describe("How much the guest was slowed down meanwhile."),
});
export type Round = z.infer<typeof roundSchema>;

export const moveReportSchema = z.object({
  mode: z
    .enum(["cold", "state", "live"])
    .describe(
      "live: memory, disk and volumes of a running guest; cold: disk and volumes; state: volumes and state files between hypervisor kinds.",
    ),
  from: z.string().describe("Name of the node it left."),
  to: z.string().describe("Name of the node it came to."),
  route: z.enum(["direct", "operator"]).describe("From node to node, or through the operator's machine."),
  bytesSent: z.int().describe("Bytes that were sent, compressed."),
  bytesSupplied: z.int().optional().describe("Of these, base, build and overlay that the target lacked; none where it was preseeded."),
  bytesAhead: z.int().optional().describe("Of these, what was sent of a container while it still ran."),
  bytesAvoided: z.int().describe("Bytes of the cloudlet that the target already had."),
  totalMillis: z.int().describe("From its begin until the application answered on the target."),
  downtimeMillis: z.int().describe("From the stop on the source to the first successful readiness check on the target."),
  predicted: z
    .object({ totalMillis: z.int().describe("Of the whole move."), downtimeMillis: z.int().describe("Of the pause.") })
    .optional()
    .describe("What was expected when the guest was paused; of a live move."),
  rounds: z.array(roundSchema).optional().describe("Of a live move, in order; the last one while the guest was paused."),
});
export type MoveReport = z.infer<typeof moveReportSchema>;

/** What the controller of a live move has decided, and on what grounds. */
export const decisionSchema = z.object({
  action: z.enum(["round", "stop", "throttle", "abort"]),
  level: z.int().describe("Level of compression for what is sent next."),
  throttlePercent: z.int().describe("How much the guest is to be slowed down from now on."),
  predictedTotalMillis: z.int().optional().describe("From the begin of the move to its end; absent while nothing was measured."),
  predictedDowntimeMillis: z.int().optional().describe("Of the pause to which this decision leads."),
  reason: z.string(),
});
export type Decision = z.infer<typeof decisionSchema>;

/** What happened in a handoff, in the order in which the source saw it; all times are the source's own. */
export const handoffEventSchema = z.discriminatedUnion("type", [
  z.object({
    type: z.literal("began"),
    at: z.int().describe("Milliseconds since 1970."),
    epoch: z.int(),
    from: z.string(),
    to: z.string(),
    route: moveReportSchema.shape.route,
    mode: moveReportSchema.shape.mode,
    budget: budgetSchema.optional(),
  }),
  z.object({ type: z.literal("round"), at: z.int().describe("When it ended."), round: roundSchema }),
  z.object({ type: z.literal("decided"), at: z.int(), decision: decisionSchema }),
  /** The guest stopped running on the source. */
  z.object({ type: z.literal("paused"), at: z.int() }),
  /** The target has everything. */
  z.object({ type: z.literal("sealed"), at: z.int() }),
  /** The source let go. */
  z.object({ type: z.literal("released"), at: z.int() }),
  /** The target started it. */
  z.object({ type: z.literal("activated"), at: z.int() }),
  z.object({ type: z.literal("ended"), at: z.int(), report: moveReportSchema }),
  /** `resumed`: the application goes on at the source. */
  z.object({ type: z.literal("failed"), at: z.int(), code: z.string(), message: z.string(), resumed: z.boolean() }),
]);
export type HandoffEvent = z.infer<typeof handoffEventSchema>;

/** One handoff of a cloudlet, as its history has it. */
export const handoffSchema = z.object({
  from: z.string(),
  to: z.string(),
  mode: moveReportSchema.shape.mode,
  route: moveReportSchema.shape.route,
  outcome: z.enum(["underWay", "moved", "failed"]),
  beganAt: z.int(),
  endedAt: z.int().optional(),
  report: moveReportSchema.optional(),
  message: z.string().optional().describe("Why it failed."),
  events: z.array(handoffEventSchema),
});
export type Handoff = z.infer<typeof handoffSchema>;
