import type { JobContext } from "../jobs.ts";
import type { InstanceSpec } from "../protocol.ts";

/** Looks after guests whose overlay is still coming. */
export interface Hydrating {
  /** Begins to look after a cloudlet, unless that is done already or nothing of it is still coming. */
  watch(id: string): void;
  /** Waits until so much of its overlay is here that a cloudlet can be resumed. */
  startable(spec: InstanceSpec, overlay: string, context: JobContext): Promise<void>;
  /** Waits until a cloudlet's overlay is whole; at once where it is. */
  follow(id: string, context: JobContext): Promise<void>;
  /** Stops looking after a cloudlet; its guest and its hydrator stay as they are. */
  end(id: string): Promise<void>;
  close(): void;
}
