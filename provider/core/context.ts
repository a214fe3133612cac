import type { Readable } from "node:stream";
import type { AgentClient } from "../agent/clientTypes.ts";
import type { ConnectionSettings, RemoteHost, Rest } from "../transport/types.ts";

/** What a resource's lifecycle functions may use: nothing else reaches the outside world. */
export interface Context {
  signal: AbortSignal;
  /** One line that says what is being done right now. */
  status(text: string): void;
  /** A warning shown with the resource. */
  warn(text: string): void;
  /** The pooled SSH connection to a node. */
  host(connection: ConnectionSettings): Promise<RemoteHost>;
  /** The agent of a commissioned node, brought up to date where its protocol is older. NOT_FOUND where the node was never commissioned. */
  agent(connection: ConnectionSettings): Promise<AgentClient>;
  /** Commissioning, and its opposite. */
  commission: Commission;
  /** LXD's own API, through SSH to its unix socket, or by HTTPS with pinned certificates. */
  lxd(
    connection: ConnectionSettings,
    remote?: { address: string; clientCertificate: string; clientKey: string; serverCertificate: string },
  ): Promise<Rest>;
  local: Local;
}

/** Where the operator's machine has an image from; exactly one of the four. Paths are the operator's. */
export type ImageSource =
  | { file: string }
  | { url: string }
  /** A shell command, run in a copy of a directory, that writes the image to the path in `$CLOUDLET_IMAGE`, or a root file system into a directory there. */
  | { build: { context: string; command: string } }
  /** An OCI reference. */
  | { image: string };

/** An overlay that was exported to a file, or pushed to a registry. */
export type OverlaySource = { file: string } | { image: string };

export interface AcquireOptions {
  /** What the content must be: INTEGRITY where it differs. What is in this machine's cache under it is not fetched again. */
  digest?: string | undefined;
  signal: AbortSignal;
  status(text: string): void;
}

/** What the operator's machine has, or gets from elsewhere. */
export interface Local {
  open(path: string): Promise<LocalBlob>;
  openDirectory(path: string): Promise<LocalBlob>;
  /** An image, downloaded, built or pulled first where it must be; kept in this machine's cache for as long as the blob is used. */
  acquire(source: ImageSource, options: AcquireOptions): Promise<LocalBlob>;
  /** An overlay: the digest of its manifest, and its blobs in the order in which a node should get them, the manifest last. */
  acquireOverlay(source: OverlaySource, options: AcquireOptions): Promise<{ digest: string; blobs: LocalBlob[] }>;
}

export interface LocalBlob {
  /** SHA-256, lower-case hex. */
  digest: string;
  bytes: number;
  stream(): Readable;
}

export interface CommissionRecord {
  /** `project/stack` of everybody who declared this node. */
  owners: string[];
  /** Packages that commissioning added, dependencies included. */
  packages: string[];
  /** Whether the guest user was added. */
  user: boolean;
  /** Kernel settings changed, with the value they had before. */
  sysctl: Record<string, string>;
}

export interface Commission {
  /** Brings the node to the state a gateway needs for these hypervisor kinds. Running it twice changes nothing. */
  apply(
    host: RemoteHost,
    options: { owner: string; install: "auto" | "never"; kinds: ("kvm" | "lxd")[] },
    context: Context,
  ): Promise<CommissionRecord>;
  /** undefined = never commissioned. `problems` names removed packages and a stopped agent. */
  observe(host: RemoteHost, context: Context): Promise<{ record: CommissionRecord; problems: string[] } | undefined>;
  /** Removes what was added, once the last owner has gone. */
  remove(host: RemoteHost, owner: string, context: Context): Promise<void>;
}
