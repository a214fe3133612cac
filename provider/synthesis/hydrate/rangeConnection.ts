import type { TLSSocket } from "node:tls";
import { setTimeout as delay } from "node:timers/promises";
import { dialPinned } from "../../agent/pinnedTls.ts";
import type { Offer } from "../../agent/protocol.ts";
import { questionFor, rangesProtocol } from "../../agent/ranges.ts";
import { CloudletError, codeOf } from "../../core/errors.ts";

export interface Range {
  offset: number;
  bytes: number;
}

/** What a connection tells its user; after `lost` nothing more comes. */
export interface RangeListener {
  /** The bytes that were asked for, in the order in which they were asked for. */
  received(offset: number, bytes: Buffer): void;
  lost(error: CloudletError): void;
}

// the next address is tried beside one that does not answer at once
const staggerMillis = 300;
const maxHeaderBytes = 16 * 1024;

/** Takes ranges of one blob from the agent that offers it, without waiting for what was asked before: small ones fill the link as well as large ones. */
export class RangeConnection {
  readonly #socket: TLSSocket;
  readonly #offer: Offer;
  readonly #listener: RangeListener;
  /** The first of them is being received: where its next byte belongs, and how many follow. */
  readonly #asked: Range[] = [];
  /** The answer in HTTP, until it is whole. */
  #header: Buffer | undefined = Buffer.alloc(0);
  #ended = false;

  private constructor(socket: TLSSocket, what: { offer: Offer; digest: string; listener: RangeListener }) {
    this.#socket = socket;
    this.#offer = what.offer;
    this.#listener = what.listener;
    const upgrade = `connection: upgrade\r\nupgrade: ${rangesProtocol}\r\n`;
    socket.write(`GET /v1/blobs/${what.digest} HTTP/1.1\r\nhost: agent\r\nauthorization: Bearer ${what.offer.token}\r\n${upgrade}\r\n`);
    socket.on("data", (data: Buffer) => this.#take(data));
    socket.on("error", (error) => this.#end(new CloudletError("UNREACHABLE", `${what.offer.node}: ${error.message}`)));
    socket.on("close", () => this.#end(new CloudletError("UNREACHABLE", `${what.offer.node} closed the connection`)));
  }

  /** The first address that answers as the node it should be. */
  static async dial(offer: Offer, digest: string, listener: RangeListener): Promise<RangeConnection> {
    return new RangeConnection(await dialFirst(offer), { offer, digest, listener });
  }

  request(range: Range): void {
    this.#asked.push(range);
    this.#socket.write(questionFor(range));
  }

  /** Ends it; the listener is not told. */
  close(): void {
    this.#ended = true;
    this.#socket.destroy();
  }

  #take(data: Buffer): void {
    let rest = this.#header === undefined ? data : this.#takeHeader(Buffer.concat([this.#header, data]));
    while (rest.length > 0 && !this.#ended) {
      const range = this.#asked[0];
      if (range === undefined) return this.#end(this.#odd("what was not asked for"));
      const piece = rest.subarray(0, range.bytes);
      rest = rest.subarray(piece.length);
      if (piece.length === range.bytes) this.#asked.shift();
      else this.#asked[0] = { offset: range.offset + piece.length, bytes: range.bytes - piece.length };
      this.#listener.received(range.offset, piece);
    }
  }

  /** Returns what follows it. */
  #takeHeader(all: Buffer): Buffer {
    this.#header = all;
    const end = all.indexOf("\r\n\r\n");
    if (end < 0) {
      if (all.length > maxHeaderBytes) this.#end(this.#odd("an endless header"));
      return Buffer.alloc(0);
    }
    this.#header = undefined;
    const refusal = this.#refusal(Number(/^HTTP\/1\.1 (\d{3})/.exec(all.toString("latin1", 0, end))?.[1]));
    if (refusal !== undefined) this.#end(refusal);
    return all.subarray(end + 4);
  }

  #refusal(status: number): CloudletError | undefined {
    const { node } = this.#offer;
    if (status === 101) return undefined;
    if (status === 401 || status === 403)
      return new CloudletError("UNAUTHORIZED", `${node} no longer offers it: the token has expired or is unknown there`, {
        fix: "run `pulumi up` again for a new one",
      });
    if (status === 404) return new CloudletError("NOT_FOUND", `${node} does not have it any more`);
    return new CloudletError("UNREACHABLE", `${node} answered with status ${status}`);
  }

  #odd(what: string): CloudletError {
    return new CloudletError("FAILED", `${this.#offer.node} answered with ${what}`);
  }

  #end(error: CloudletError): void {
    if (this.#ended) return;
    this.close();
    this.#listener.lost(error);
  }
}

/** All addresses, one shortly after the other, and the operator's relay last; whoever answers first is taken. */
async function dialFirst(offer: Offer): Promise<TLSSocket> {
  const places = offer.addresses.map((host) => ({ host, port: offer.port }));
  if (offer.relayPort !== undefined) places.push({ host: "127.0.0.1", port: offer.relayPort });
  let settled = false;
  const failures: { text: string; error: unknown }[] = [];
  const attempts = places.map(async ({ host, port }, position) => {
    // a refusal before makes the next attempt start at once
    for (let waited = 0; waited < position * staggerMillis && failures.length < position; waited += 20) await delay(20);
    if (settled) throw new Error("another address was faster");
    try {
      const socket = await dialPinned(offer, host, port);
      if (!settled) return socket;
      socket.destroy();
    } catch (error) {
      failures.push({ text: `${host}:${port}: ${error instanceof Error ? error.message : String(error)}`, error });
    }
    throw new Error("not this one");
  });
  try {
    return await Promise.any(attempts);
  } catch {
    const wrong = failures.find(({ error }) => codeOf(error) === "HOST_KEY");
    const text = failures.map((failure) => failure.text).join("; ");
    throw new CloudletError(wrong === undefined ? "UNREACHABLE" : "HOST_KEY", `${offer.node} cannot be reached (${text})`);
  } finally {
    settled = true;
  }
}
