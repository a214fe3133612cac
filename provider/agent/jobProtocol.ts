import { z } from "zod";

export const jobErrorSchema = z.object({ code: z.string(), message: z.string(), fix: z.string() });

/** How a job ends that was under way when its agent did. */
export const agentRestarted = "agent restarted";

/** One line of a job's journal and of its event stream. */
export const jobEventSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("begun"), seq: z.int(), at: z.string(), verb: z.string() }),
  z.object({ type: z.literal("step"), seq: z.int(), at: z.string(), name: z.string() }),
  z.object({ type: z.literal("progress"), seq: z.int(), at: z.string(), text: z.string() }),
  z.object({ type: z.literal("done"), seq: z.int(), at: z.string(), result: z.unknown() }),
  z.object({ type: z.literal("failed"), seq: z.int(), at: z.string(), error: jobErrorSchema }),
]);
export type JobEvent = z.infer<typeof jobEventSchema>;

export const jobRequestSchema = z.object({ verb: z.string(), args: z.unknown() });
