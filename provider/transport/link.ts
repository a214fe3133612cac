import { constants } from "node:os";
import type { Duplex } from "node:stream";
import { CloudletError } from "../core/errors.ts";
import { Gate } from "./gate.ts";
import type { Connected, SshChannel, SshClient } from "./ssh.ts";
import { TunnelStream } from "./stream.ts";

// sshd allows 10 sessions on one connection (MaxSessions) and refuses the rest; forwarded streams do not count
const sessionLimit = 8;
const urgentLimit = 2;
const keepAliveMillis = 15_000;

/** The cause of an error where the connection was found lost before anything was asked of the node: asking again is safe. */
export const notStarted = new Error("nothing had been asked of the node");

/** What a link stands on: the socket, or the bastion's link. */
export interface Footing {
  /** Whether an open connection keeps the process alive. */
  hold(on: boolean): void;
  /** Bytes that have come from the far end so far. */
  heard(): number;
  end(): void;
}

export interface RemoteCommand {
  channel: SshChannel;
  /** As a shell says it: 128 + number for a signal. undefined = it has not ended, or the connection was lost. */
  exitCode(): number | undefined;
  /** Resolves when all of stdout and stderr has been read and the exit code is in, or the connection was lost. */
  closed: Promise<void>;
  /** Stops waiting for a far end that does not answer any more. */
  abandon(): void;
}

/** One live SSH connection: opens channels on it, notices its loss, counts its users. */
export class Link {
  readonly label: string;
  readonly fingerprint: string;
  readonly #client: SshClient;
  readonly #footing: Footing;
  readonly #accept = new Map<number, (stream: Duplex) => void>();
  readonly #sessions = new Gate(sessionLimit);
  readonly #urgent = new Gate(urgentLimit);
  readonly #keepAlive: NodeJS.Timeout;
  #alive = true;

  constructor(label: string, { client, fingerprint }: Connected, footing: Footing) {
    this.label = label;
    this.fingerprint = fingerprint;
    this.#client = client;
    this.#footing = footing;
    this.#keepAlive = setInterval(() => this.#probe(), keepAliveMillis).unref();
    client.on("close", () => this.#lost());
    client.on("tcp connection", ({ destPort }, accept, reject) => {
      const handler = this.#accept.get(destPort);
      if (handler === undefined) reject();
      else handler(this.#stream(accept()));
    });
  }

  get alive(): boolean {
    return this.#alive;
  }

  hold(on: boolean): void {
    this.#footing.hold(on);
  }

  /** Runs a command line in the login shell. Waits for its turn where too many run already; what ends others is urgent. */
  async command(text: string, signal: AbortSignal, urgent = false): Promise<RemoteCommand> {
    const gate = urgent ? this.#urgent : this.#sessions;
    await gate.enter(signal);
    let command: RemoteCommand | undefined;
    try {
      await this.#open(signal, (done) =>
        this.#client.exec(text, (error, channel) => {
          // at once: exit code and close may be in the very next packet, before any promise is resolved
          if (error === undefined) command = watchCommand(channel);
          void command?.closed.then(() => gate.leave());
          done(error, channel);
        }),
      );
    } catch (error) {
      if (command === undefined) gate.leave();
      else command.abandon();
      throw error;
    }
    if (command === undefined) throw this.lostError();
    return command;
  }

  async unixSocket(path: string, signal: AbortSignal): Promise<TunnelStream> {
    return this.#stream(await this.#open(signal, (done) => this.#client.openssh_forwardOutStreamLocal(path, done)));
  }

  async tcp(host: string, port: number, signal: AbortSignal): Promise<TunnelStream> {
    return this.#stream(await this.#open(signal, (done) => this.#client.forwardOut("127.0.0.1", 0, host, port, done)));
  }

  async listen(accept: (stream: Duplex) => void): Promise<{ port: number; close(): Promise<void> }> {
    const port = await new Promise<number>((resolve, reject) => {
      const timer = setTimeout(
        () => reject(new CloudletError("TIMEOUT", `${this.label} did not answer a request to listen on a port within 15 s`)),
        15_000,
      );
      this.#guard(reject, () =>
        this.#client.forwardIn("127.0.0.1", 0, (error, bound) => {
          clearTimeout(timer);
          if (error === undefined || error === null) resolve(bound);
          else
            reject(
              this.alive
                ? new CloudletError("UNSUPPORTED", `${this.label} refuses to listen on a loopback port`, {
                    fix: "set AllowTcpForwarding yes in the node's sshd_config",
                    cause: error,
                  })
                : this.lostError(),
            );
        }),
      );
    });
    this.#accept.set(port, accept);
    const close = async (): Promise<void> => {
      this.#accept.delete(port);
      if (!this.#alive) return;
      await new Promise<void>((resolve) =>
        this.#guard(
          () => resolve(),
          () => this.#client.unforwardIn("127.0.0.1", port, () => resolve()),
        ),
      );
    };
    return { port, close };
  }

  end(): void {
    this.#client.end();
    this.#footing.end();
    this.#lost();
  }

  lostError(cause?: Error): CloudletError {
    return new CloudletError("UNREACHABLE", `the SSH connection to ${this.label} was lost`, { cause });
  }

  #lost(): void {
    this.#alive = false;
    clearInterval(this.#keepAlive);
    this.#footing.end();
  }

  #stream(channel: SshChannel): TunnelStream {
    return new TunnelStream(channel, { failure: () => (this.#alive ? undefined : this.lostError()) });
  }

  #open(signal: AbortSignal, start: (done: (error: Error | undefined, channel: SshChannel) => void) => void): Promise<SshChannel> {
    signal.throwIfAborted();
    return new Promise<SshChannel>((resolve, reject) => {
      const onAbort = (): void => reject(asError(signal.reason));
      signal.addEventListener("abort", onAbort, { once: true });
      this.#guard(reject, () =>
        start((error, channel) => {
          signal.removeEventListener("abort", onAbort);
          // an answer after the deadline: nobody waits for this channel
          if (error === undefined && signal.aborted) channel.close();
          else if (error === undefined) resolve(channel);
          else reject(this.#alive ? error : this.lostError(error.message === "Unable to exec" ? undefined : notStarted));
        }),
      );
    });
  }

  /** ssh2 throws at once where the connection is gone. */
  #guard(reject: (error: Error) => void, start: () => void): void {
    try {
      start();
    } catch {
      reject(this.lostError(notStarted));
    }
  }

  /**
   * Any answer shows that the far end lives, also the refusal that cancelling an unknown forwarding gets. On a slow link it
   * queues behind megabytes of an upload, and the signs that those arrive are as good.
   */
  #probe(): void {
    const before = this.#footing.heard();
    const judge = (): void => {
      if (this.#footing.heard() === before) this.#client.destroy();
    };
    const timer = setTimeout(judge, keepAliveMillis).unref();
    this.#guard(
      () => clearTimeout(timer),
      () => this.#client.unforwardIn("127.0.0.1", 1, () => clearTimeout(timer)),
    );
  }
}

function asError(reason: unknown): Error {
  return reason instanceof Error ? reason : new Error(String(reason));
}

function watchCommand(channel: SshChannel): RemoteCommand {
  let exitCode: number | undefined;
  let abandon = (): void => undefined;
  const abandoned = new Promise<void>((resolve) => (abandon = resolve));
  channel.on("exit", (code: number | null, name?: string) => (exitCode = code ?? 128 + signalNumber(name)));
  // ssh2 says "close" when stdout is read, whatever is left of stderr
  const read = Promise.all([channel, channel.stderr].map((stream) => new Promise<void>((done) => stream.once("close", () => done()))));
  return { channel, exitCode: () => exitCode, closed: Promise.race([abandoned, read.then(() => undefined)]), abandon };
}

function signalNumber(name: string | undefined): number {
  return Object.entries(constants.signals).find(([known]) => known === name)?.[1] ?? 0;
}
