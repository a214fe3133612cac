import { Duplex } from "node:stream";
import type { SshChannel } from "./ssh.ts";

export interface Ending {
  /** Why the far end went away, if that was no proper end. */
  failure(): Error | undefined;
  /** When `failure` is known, for channels whose end of data does not tell. */
  closed?: Promise<void>;
}

/**
 * A forwarded connection as an ordinary stream. ssh2's channel ignores the error of `destroy`, never sets `destroyed` and leaves
 * writes to a closed channel without an answer, which hangs pipelines.
 */
export class TunnelStream extends Duplex {
  /** As of a socket. */
  bytesRead = 0;
  readonly #channel: SshChannel;
  #closed = false;
  #unwritten: ((error?: Error) => void) | undefined;

  constructor(channel: SshChannel, { failure, closed }: Ending) {
    super({ allowHalfOpen: true });
    this.#channel = channel;
    channel.on("data", (chunk: Buffer) => {
      this.bytesRead += chunk.length;
      if (!this.push(chunk)) channel.pause();
    });
    channel.on("error", (error: Error) => this.destroy(error));
    if (closed === undefined) {
      channel.on("end", () => {
        if (failure() === undefined) this.push(null);
      });
      channel.on("close", () => this.#farEndClosed(failure()));
    } else {
      void closed.then(() => this.#farEndClosed(failure()));
    }
  }

  override _read(): void {
    this.#channel.resume();
  }

  override _write(chunk: Buffer, _encoding: string, done: (error?: Error) => void): void {
    if (this.#closed) {
      done(brokenPipe());
    } else if (this.#channel.write(chunk)) {
      done();
    } else {
      this.#unwritten = done;
      this.#channel.once("drain", () => {
        this.#unwritten = undefined;
        done();
      });
    }
  }

  override _final(done: () => void): void {
    this.#channel.end();
    done();
  }

  override _destroy(error: Error | null, done: (error: Error | null) => void): void {
    this.#unwritten = undefined;
    this.#channel.removeAllListeners("drain");
    this.#channel.close();
    done(error);
  }

  #farEndClosed(error: Error | undefined): void {
    this.#closed = true;
    if (error !== undefined) this.destroy(error);
    else this.#unwritten?.(brokenPipe());
    if (this.destroyed) return;
    if (!this.readableEnded) this.push(null);
    this.end();
  }

  // HTTP clients take this for a socket
  setNoDelay(): this {
    return this;
  }
  setKeepAlive(): this {
    return this;
  }
  setTimeout(): this {
    return this;
  }
  /** Events `ref` and `unref` tell the holder of the connection whether it should keep the process alive. */
  ref(): this {
    this.emit("ref");
    return this;
  }
  unref(): this {
    this.emit("unref");
    return this;
  }
}

function brokenPipe(): Error {
  return Object.assign(new Error("the far end has closed the connection"), { code: "EPIPE" });
}
