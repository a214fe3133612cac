import type { Duplex, Readable } from "node:stream";

/** How to reach a node. The words are those of `@pulumi/command`; unlike there, an unknown host key is an error. */
export interface ConnectionSettings {
  host: string;
  port?: number | undefined;
  user?: string | undefined;
  password?: string | undefined;
  privateKey?: string | undefined;
  privateKeyPassword?: string | undefined;
  agentSocketPath?: string | undefined;
  hostKey?: string | undefined;
  proxy?: Omit<ConnectionSettings, "proxy"> | undefined;
  perDialTimeout?: number | undefined;
  dialErrorLimit?: number | undefined;
}

export interface ExecResult {
  stdout: string;
  stderr: string;
  exitCode: number;
}

export interface ExecOptions {
  /** Sent to the command's standard input; the place for anything secret. */
  stdin?: string | Buffer | Readable;
  /** Deadline in milliseconds. Default 60 000. */
  timeoutMillis?: number;
  signal?: AbortSignal | undefined;
  /** Called with each chunk of stdout and stderr as it arrives. */
  onOutput?: (chunk: string) => void;
}

/** One node over one pooled SSH connection. Every method has a deadline and rejects with CloudletError. */
export interface RemoteHost {
  /** `user@host:port`, for messages. */
  readonly label: string;
  /** `SHA256:…` of the host key that was verified. */
  readonly hostKeyFingerprint: string;
  /** Runs a POSIX shell command with root rights (by `sudo -n` where the login user is not root). A non-zero exit code is a result, not an error. */
  exec(command: string, options?: ExecOptions): Promise<ExecResult>;
  /** Like exec, but a non-zero exit code is a FAILED error that carries the last lines of stderr. Returns stdout. */
  run(command: string, options?: ExecOptions): Promise<string>;
  /** Writes a file with root rights: temporary name, SHA-256 check on the node, fsync, rename. `digest` is lower-case hex. */
  upload(
    source: { path: string } | { content: Buffer },
    target: { path: string; mode: number; digest?: string },
    options?: { signal?: AbortSignal; timeoutMillis?: number },
  ): Promise<void>;
  /** A stream to a unix socket on the node, with root rights. */
  openSocket(path: string, signal?: AbortSignal): Promise<Duplex>;
  /** A stream to a TCP port as seen from the node. */
  openTcp(host: string, port: number, signal?: AbortSignal): Promise<Duplex>;
  /** Listens on a loopback port of the node and hands each accepted stream to `accept`, until closed. */
  listenTcp(accept: (stream: Duplex) => void): Promise<{ port: number; close(): Promise<void> }>;
}

export interface RestRequest {
  method: "GET" | "PUT" | "POST" | "PATCH" | "DELETE" | "HEAD";
  path: string;
  headers?: Record<string, string>;
  /** An object is sent as JSON. */
  body?: Record<string, unknown> | Buffer | Readable;
  /** Deadline in milliseconds for the headers, and between chunks of the body. Default 30 000. */
  timeoutMillis?: number;
  signal?: AbortSignal | undefined;
}

export interface RestResponse {
  status: number;
  headers: Record<string, string>;
  body: Readable;
}

/** HTTP to one origin. Rejects with UNREACHABLE, TIMEOUT or ABORTED; any HTTP status is a result. */
export interface Rest {
  /** For messages: `agent on gw1`, `LXD on gw1`. */
  readonly label: string;
  request(request: RestRequest): Promise<RestResponse>;
  close(): Promise<void>;
}
