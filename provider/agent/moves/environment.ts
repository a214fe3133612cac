import type { Guest } from "../../hypervisors/types.ts";
import type { Hypervisors } from "../hypervisors.ts";
import type { JobContext } from "../jobs.ts";
import type { KeyedLock } from "../keyedLock.ts";
import type { Records, InstanceRecord } from "../records.ts";
import type { Store } from "../store.ts";
import type { Volumes } from "../volumes.ts";

/** What moves need of the agent. */
export interface MoveEnvironment {
  root: string;
  records: Records;
  store: Store;
  hypervisors: Hypervisors;
  volumes: Volumes;
  lock: KeyedLock;
  guestOf(record: InstanceRecord): Promise<Guest>;
  /** Address, rules and published ports of every cloudlet that is owned here. */
  publish(): Promise<void>;
  /** Starts an owned cloudlet as its spec says and waits until it answers. */
  bringUp(record: InstanceRecord, context: JobContext): Promise<void>;
  /** A record for a spec that has none yet: address and defaults. */
  newRecord(spec: InstanceRecord["spec"], ownership: InstanceRecord["ownership"]): Promise<InstanceRecord>;
  /** Throws CONFLICT where another cloudlet publishes one of the ports. */
  requirePorts(spec: InstanceRecord["spec"]): Promise<void>;
}
