import type { TLSSocket } from "node:tls";
import { setTimeout as delay } from "node:timers/promises";
import { dialPinned } from "../../agent/pinnedTls.ts";
import type { Offer } from "../../agent/protocol.ts";
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

/**
 * Takes ranges of one blob from the agent that offers it. Requests are sent without waiting for the answers before
 * (HTTP's pipelining, which Node's own client does not do), so that small ones fill the link as well as large ones.
 */
export class RangeConnection {
  readonly #socket: TLSSocket;
  readonly #offer: Offer;
  readonly #head: string;
  readonly #listener: RangeListener;
  readonly #asked: Range[] = [];
  #header: Buffer = Buffer.alloc(0);
  /** Of the answer that is being received: where its next byte belongs, and how many follow. */
  #body: Range | undefined;
  #ended = false;

  private constructor(socket: TLSSocket, what: { offer: Offer; digest: string; listener: RangeListener }) {
    this.#socket = socket;
    this.#offer = what.offer;
    this.#listener = what.listener;
    this.#head = `GET /v1/blobs/${what.digest} HTTP/1.1\r\nhost: agent\r\nauthorization: Bearer ${what.offer.token}\r\nrange: bytes=`;
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
    this.#socket.write(`${this.#head}${range.offset}-${range.offset + range.bytes - 1}\r\n\r\n`);
  }

  /** Ends it; the listener is not told. */
  close(): void {
    this.#ended = true;
    this.#socket.destroy();
  }

  #take(data: Buffer): void {
    let rest = data;
    while (rest.length > 0 && !this.#ended) rest = this.#body === undefined ? this.#takeHeader(rest) : this.#takeBody(rest, this.#body);
  }

  #takeBody(data: Buffer, body: Range): Buffer {
    const piece = data.subarray(0, body.bytes);
    this.#body = piece.length === body.bytes ? undefined : { offset: body.offset + piece.length, bytes: body.bytes - piece.length };
    this.#listener.received(body.offset, piece);
    return data.subarray(piece.length);
  }

  #takeHeader(data: Buffer): Buffer {
    const all = this.#header.length === 0 ? data : Buffer.concat([this.#header, data]);
    const end = all.indexOf("\r\n\r\n");
    if (end < 0) {
      this.#header = all;
      if (all.length > maxHeaderBytes) this.#end(this.#odd("an endless header"));
      return Buffer.alloc(0);
    }
    this.#header = Buffer.alloc(0);
    const asked = this.#asked.shift();
    const wrong = asked === undefined ? this.#odd("what was not asked for") : this.#refusal(all.toString("latin1", 0, end), asked);
    if (wrong !== undefined) this.#end(wrong);
    this.#body = asked;
    return all.subarray(end + 4);
  }

  #refusal(header: string, asked: Range): CloudletError | undefined {
    const { node } = this.#offer;
    const status = Number(/^HTTP\/1\.1 (\d{3})/.exec(header)?.[1]);
    if (status === 401 || status === 403)
      return new CloudletError("UNAUTHORIZED", `${node} no longer offers it: the token has expired or is unknown there`, {
        fix: "run `pulumi up` again for a new one",
      });
    if (status === 404) return new CloudletError("NOT_FOUND", `${node} does not have it any more`);
    const length = Number(/\r\ncontent-length: *(\d+)/i.exec(header)?.[1]);
    const first = Number(/\r\ncontent-range: *bytes (\d+)-/i.exec(header)?.[1]);
    if (status === 206 && length === asked.bytes && first === asked.offset) return undefined;
    if (status === 206) return this.#odd("another range than the one asked for");
    // seen from a node that was asked for much at once, though nothing was wrong with what it was asked
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
