import type { Readable } from "node:stream";
import type { Facts } from "./factsProtocol.ts";
import type { Handoff } from "./handoffProtocol.ts";
import type { JobEvent } from "./jobProtocol.ts";
import type {
  AgentInfo,
  ExecRequest,
  HypervisorStatus,
  ImageStatus,
  InstanceExecResult,
  InstanceStatus,
  OverlayStatus,
  PreseedStatus,
  Verb,
  VerbArgs,
  VerbResult,
  VolumeStatus,
} from "./protocol.ts";

export interface CallOptions {
  signal?: AbortSignal | undefined;
  /** Deadline of the whole call in milliseconds. */
  timeoutMillis?: number;
  onEvent?: (event: JobEvent) => void;
}

/** One of the overlays that a node keeps: `owner` keeps it under `name`. */
export type KeptOverlayStatus = OverlayStatus & { name: string; owner: string };

/** The agent of one node. Every answer has passed its schema; `undefined` always means that the node answered "not there". */
export interface AgentClient {
  /** Node label for messages. */
  readonly label: string;
  info(options?: CallOptions): Promise<AgentInfo>;
  facts(options?: CallOptions): Promise<Facts>;
  hypervisor(options?: CallOptions): Promise<HypervisorStatus | undefined>;
  instance(id: string, options?: CallOptions): Promise<InstanceStatus | undefined>;
  /** A guest that was made without us, of that name, as the cloudlet that it would be. */
  foreign(wanted: { name: string; id: string; owner: string }, options?: CallOptions): Promise<InstanceStatus | undefined>;
  instances(options?: CallOptions): Promise<InstanceStatus[]>;
  log(id: string, lines: number, options?: CallOptions): Promise<string>;
  /** What is known of the cloudlet's handoffs, newest first. */
  handoffs(id: string, options?: CallOptions): Promise<Handoff[]>;
  exec(id: string, request: ExecRequest, options?: CallOptions): Promise<InstanceExecResult>;
  volume(id: string, options?: CallOptions): Promise<VolumeStatus | undefined>;
  hasBlob(digest: string, options?: CallOptions): Promise<boolean>;
  putBlob(blob: { digest: string; bytes: number; stream(): Readable }, options?: CallOptions): Promise<void>;
  /** The bytes of a blob in the node's store. */
  getBlob(digest: string, options?: CallOptions): Promise<{ bytes: number; stream: Readable } | undefined>;
  /** What an owner keeps there under this name. */
  image(name: string, owner: string, options?: CallOptions): Promise<ImageStatus | undefined>;
  overlay(name: string, owner: string, options?: CallOptions): Promise<OverlayStatus | undefined>;
  /** What was brought there for a cloudlet that may move there, while all of it is there. */
  preseed(id: string, owner: string, options?: CallOptions): Promise<PreseedStatus | undefined>;
  /** Every overlay that the node keeps, whoever its owner is. */
  overlays(options?: CallOptions): Promise<KeptOverlayStatus[]>;
  /** Runs a verb as a job: attaches to a running job of the same id, follows its events over lost connections, rejects with the agent's CloudletError. */
  run<V extends Verb>(verb: V, args: VerbArgs<V>, options?: CallOptions): Promise<VerbResult<V>>;
}
