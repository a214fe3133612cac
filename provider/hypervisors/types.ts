import type { Duplex, Readable } from "node:stream";
import type { Foreign, InstanceExecResult, InstanceSpec, Kind, Machine } from "../agent/protocol.ts";

/** What a hypervisor may lack; a cloudlet that needs a missing one is refused in preview, by this name. */
export const abilities = ["userData", "suspend", "snapshot", "exec", "build", "environment", "volumes", "stateFiles", "live"] as const;
export type Ability = (typeof abilities)[number];

/** Which abilities each kind has; known without contacting a node. */
export const abilitiesOf: Readonly<Record<Kind, readonly Ability[]>> = {
  kvm: ["userData", "suspend", "snapshot", "exec", "environment", "volumes", "stateFiles", "live"],
  lxd: ["suspend", "snapshot", "exec", "build", "environment", "volumes", "stateFiles"],
};

export type GuestState = "running" | "stopped" | "suspended";

/** Everything a driver needs to know about one guest. Prepared by the agent; the driver owns `directory/` except `record.json`. */
export interface Guest {
  /** Accepted by LXD, cgroups and file systems (guestName of the cloudlet's id). */
  name: string;
  spec: InstanceSpec;
  /** Absolute path of the verified base in the store. */
  basePath: string;
  /** Absolute path of the build's tar in the store. */
  buildPath?: string | undefined;
  /** The driver's own directory for this guest; exists. */
  directory: string;
  network: { bridge: string; mac: string; address: string; prefix: number; gateway: string };
  /** Host paths of volumes, in the order of spec.volumes. */
  volumes: { id: string; path: string; hostPath: string }[];
}

export interface Progress {
  signal: AbortSignal;
  status(text: string): void;
}

/** A file that makes up a stopped guest's state, for a move to a node of the same kind. */
export interface Part {
  name: string;
  path: string;
  /** Where pieces of this part are likely to be found on the target: the base's digest. */
  format: "raw" | "tar";
}

/** Where an image that lies below a guest's own disk or memory is read from. */
export type Layer =
  | { file: string }
  /** A qcow2 file that is still arriving: its bytes are served at this unix socket, under this export name, until all are in the file. */
  | {
      file: string;
      nbd: string;
      exportName: string;
      /** The file or image that it stands on, absolute; absent for memory over nothing. */ below?: string;
    };

/** An overlay, recombined (or still arriving) on this node: what a guest is resumed from. All paths are absolute. */
export interface Origin {
  disk: Layer;
  memory: Layer;
  /** Device state, as QEMU saved it. */
  state: string;
  seed: string;
  machine: Machine;
  /** What the guest in the saved memory believes to be its network. */
  network: { mac: string; address: string };
}

/** A guest at one instant, not running, still on disk: what an overlay is sealed from. All paths are absolute. */
export interface Frozen {
  /** The guest's own layer (qcow2) over what lies below. */
  disk: string;
  /** The whole memory, a sparse plain file. */
  memory: string;
  state: string;
  seed: string;
  machine: Machine;
}

/** What a hypervisor that can save memory does for synthesis (kvm). */
export interface Synthesis {
  /** What a guest started here now would be: accelerator, processor, machine type. */
  machine(resources: { cores: number; memoryMib: number }): Promise<Machine>;
  /** Starts a guest made by `ensure` with its memory in a plain file, so that it can be frozen; over `origin` where it is resumed from a base's memory. */
  startForFreeze(guest: Guest, origin: Origin | undefined, progress: Progress): Promise<void>;
  /** What a guest started by `startForFreeze` prints on its first serial port, and what is typed there. One at a time. */
  openConsole(guest: Guest): Promise<Duplex>;
  /** Has the guest give back what it does not need (trim, free pages), stops it at one instant, and ends its process. */
  freeze(guest: Guest, progress: Progress): Promise<Frozen>;
  /** Makes the guest over an overlay and resumes it; returns once it runs. With `settle` to come where a layer is still arriving. */
  resume(guest: Guest, origin: Origin, progress: Progress): Promise<void>;
  /** Makes the guest, stopped, so that it boots from its disk over this image. */
  makeOver(guest: Guest, disk: string, progress: Progress): Promise<void>;
  /** The layers have arrived: a running guest reads them from their files alone from now on. Run again, it does nothing. */
  settle(guest: Guest, progress: Progress): Promise<void>;
  /** Holds a running guest still while its source is silent, and lets it go on. */
  hold(guest: Guest, held: boolean): Promise<void>;
}

/** One pass over what has changed of a running guest. */
export interface LiveRound {
  /** What the target's driver takes in, uncompressed; read it to its end. */
  records: AsyncIterable<Buffer>;
  /** Once they have been read: what they hold in full, and bytes of what they only name, since the target has it. */
  stats(): { pages: number; blocks: number; rawBytes: number; knownBytes: number };
}

/** A running guest while it is copied to another node. */
export interface LiveDeparture {
  /** What has changed since the last round began, at first everything; the guest runs on. */
  round(signal: AbortSignal): LiveRound;
  /** Bytes that have changed since the last round began. */
  remaining(signal: AbortSignal): Promise<{ memoryBytes: number; diskBytes: number }>;
  /** The last changes and the devices' state; the guest stands still from `onPaused` on, until `stay` or its end. */
  last(signal: AbortSignal, onPaused: () => void): LiveRound;
  /** Slows the guest down by so much of a processor. */
  throttle(percent: number): Promise<void>;
  /** Ends the reading; the guest needs `stay` then, or goes. */
  close(): Promise<void>;
}

/** The other end: a guest that takes shape while it still runs elsewhere. */
export interface LiveArrival {
  /** What is here of the guest from before (`FormerCopy.onTarget`). */
  has: Buffer;
  /** Takes in one round; returns once all of it is in place. */
  take(records: AsyncIterable<Buffer>): Promise<void>;
  /** After the last round: memory is loaded, the disks are on disk, and the guest would run if it was told to. */
  finish(signal: AbortSignal): Promise<void>;
  close(): Promise<void>;
}

/** Images that both nodes have: what the guest's disk stands on, and its overlay's memory. */
export interface CommonImages {
  disk: string;
  memory: string | undefined;
}

/** What nodes keep of a guest that was there before, or that had begun to arrive. */
export interface FormerCopy {
  /** A file of this node's: what stays here of the guest when it has gone. */
  path: string;
  /** What the target has, in the driver's own words, once it has looked. */
  onTarget: Promise<Buffer>;
}

/** What a hypervisor does that moves guests while they run (kvm). */
export interface Live {
  /** What the target must know to receive this guest, in the driver's own words; or why it can only be moved while it is stopped. */
  shape(guest: Guest): Promise<{ shape: string } | { impossible: string }>;
  /** Bytes that its disk and volumes take up here, and will on the target. */
  diskBytes(guest: Guest): Promise<number>;
  depart(guest: Guest, known: { images: CommonImages; former: FormerCopy }, progress: Progress): Promise<LiveDeparture>;
  /** Writes to a file what such a copy holds (`FormerCopy.path`), of a guest that runs on meanwhile. */
  copy(guest: Guest, parts: { images: CommonImages; path: string }, progress: Progress): Promise<void>;
  /** The guest runs on here, and nothing is left of an attempt to move it. Of one whose process has gone, nothing is done. */
  stay(guest: Guest): Promise<void>;
  /** Makes the guest's files and starts its process, which waits for what arrives. The guest must not be there. */
  receive(guest: Guest, parts: { shape: string; images: CommonImages; former: string }, progress: Progress): Promise<LiveArrival>;
  /** Whether a guest that has arrived whole is there and only waits to be told to run. */
  isWaiting(guest: Guest): Promise<boolean>;
  /** Lets such a guest run; one whose process is gone boots from its disk. */
  release(guest: Guest, progress: Progress): Promise<void>;
  /** Sets the guest's clock, which stood still during the pause, where somebody in the guest does that. Fails for nothing, and takes seconds at most. */
  catchUp(guest: Guest): Promise<void>;
}

/** What a hypervisor without memory of its own does for synthesis (lxd): the delta of the root file system as a tar, with whiteouts. */
export interface RootDelta {
  /** Of a stopped guest made by `ensure`: what differs from its base, deterministic. */
  rootDelta(guest: Guest, progress: Progress): Promise<Readable>;
  /** Makes the guest, stopped, from its base and such a delta. */
  makeFromDelta(guest: Guest, delta: { digest: string; path: string }, progress: Progress): Promise<void>;
}

/** A guest that was made without us, in the words of a spec. */
export interface ForeignGuest extends Foreign, Pick<InstanceSpec, "state" | "resources" | "ports" | "environment"> {
  /** Digest of the image that it was made from. */
  base: string;
  /** As it has it now; empty where it has none. */
  address: string;
}

/** What a hypervisor does that takes over guests made without us (lxd). */
export interface ForeignGuests {
  /** undefined = there is none of that name. One that cannot become a cloudlet, or is one, is an error that says why. */
  find(name: string, signal: AbortSignal): Promise<ForeignGuest | undefined>;
  /** The bytes of the image with that digest. */
  openBase(digest: string, signal: AbortSignal): Promise<Readable>;
  /** Makes it the cloudlet's guest under the name that it has, and leaves it stopped; its disk stays as it is. Run again, it continues. */
  take(guest: Guest, foreign: Foreign, progress: Progress): Promise<void>;
  /** Removes it, where it is still that one and nobody else's. Returns whether it was. */
  remove(foreign: Foreign, id: string, progress: Progress): Promise<boolean>;
}

/** What a hypervisor does that moves guests only while they are stopped, so that little is left to send by then (lxd). */
export interface Ahead {
  /** About what the files of a running guest take up, its volumes included. */
  diskBytes(guest: Guest, progress: Progress): Promise<number>;
  /** `exportParts` of a guest that runs on meanwhile: what its files are while they change, of which most will be the same once it stands still. */
  exportParts(guest: Guest, progress: Progress): Promise<Part[]>;
}

/**
 * What every hypervisor does, on the node. All methods are idempotent, have deadlines, and throw CloudletError:
 * UNREACHABLE when the hypervisor is silent (never `undefined`), NOT_FOUND when the guest is not there and must be,
 * FAILED with the hypervisor's own words otherwise.
 */
export interface Driver {
  readonly kind: Kind;
  readonly synthesis?: Synthesis;
  readonly rootDelta?: RootDelta;
  readonly live?: Live;
  readonly foreign?: ForeignGuests;
  readonly ahead?: Ahead;
  /** Version of the hypervisor, how guests execute on it, and which machine types it has. */
  describe(): Promise<{ version: string; accelerator: "kvm" | "tcg" | "none"; machineTypes: string[] }>;
  /** undefined = the hypervisor answered and has no such guest. */
  observe(guest: Guest): Promise<GuestState | undefined>;
  /** Makes the guest, stopped. An existing one is brought to the spec: limits, files, environment, disk size; a restart is the agent's business. Returns whether a running or suspended guest must restart for the change to show. */
  ensure(guest: Guest, progress: Progress): Promise<{ restartNeeded: boolean }>;
  start(guest: Guest, progress: Progress): Promise<void>;
  /** Asks the guest to shut down, waits up to 10 s, then ends it. A stopped guest is fine. */
  stop(guest: Guest, progress: Progress): Promise<void>;
  suspend(guest: Guest, progress: Progress): Promise<void>;
  /** Removes everything `ensure` made. A guest that is already gone is fine. */
  remove(guest: Guest, progress: Progress): Promise<void>;
  snapshot(guest: Guest, name: string, progress: Progress): Promise<void>;
  restore(guest: Guest, name: string, progress: Progress): Promise<void>;
  exec(
    guest: Guest,
    command: string[],
    options: { environment?: Record<string, string> | undefined; timeoutMillis: number; signal?: AbortSignal | undefined },
  ): Promise<InstanceExecResult>;
  /** Last lines of the console (serial log, or container console), newest last. */
  log(guest: Guest, lines: number): Promise<string>;
  /** Of a stopped guest: files whose bytes are its state, made below guest.directory/export. */
  exportParts(guest: Guest, progress: Progress): Promise<Part[]>;
  /** Makes the stopped guest from parts assembled in `directory`. */
  importParts(guest: Guest, directory: string, progress: Progress): Promise<void>;
  /** Reads spec.stateFiles as one tar stream, consistently: of a running guest it quiesces, copies, and leaves the guest stopped. */
  exportState(guest: Guest, progress: Progress): Promise<Readable>;
  /** Puts such a tar into a guest that `ensure` made and that has not started yet. */
  importState(guest: Guest, tar: Readable, progress: Progress): Promise<void>;
  /** Volumes: a file or directory on the host that this kind of guest can attach. */
  createVolume(hostPath: string, sizeMib: number, progress: Progress): Promise<void>;
  /** A volume's contents as a tar stream, and back, for moves between kinds. */
  readVolume(hostPath: string, progress: Progress): Promise<Readable>;
  writeVolume(hostPath: string, sizeMib: number, tar: Readable, progress: Progress): Promise<void>;
  /** Removes what the driver itself put on the host outside guest directories. */
  uninstall(progress: Progress): Promise<void>;
}
