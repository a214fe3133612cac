import type { Socket } from "node:net";
import { ByteReader } from "../../agent/byteReader.ts";
import * as wire from "./nbdWire.ts";

const handshakeMillis = 10_000;
/** What may be on its way to one client at a time; whoever asks for more is heard later. */
const pendingLimit = 64 * 1024 * 1024;

/** Bytes that clients may read. A read that cannot be answered yet waits; `signal` ends it when the client has gone. */
export interface NbdExport {
  name: string;
  bytes: number;
  read(offset: number, length: number, signal: AbortSignal): Promise<Buffer>;
}

/** One client, from its greeting to its end. Whatever is not the protocol ends the connection. */
export class NbdConnection {
  readonly #socket: Socket;
  readonly #reader: ByteReader;
  readonly #exports: NbdExport[];
  readonly #gone = new AbortController();
  #pending = 0;
  #relieved: () => void = () => undefined;

  constructor(socket: Socket, exports: NbdExport[]) {
    this.#socket = socket;
    this.#exports = exports;
    this.#reader = new ByteReader(socket);
    socket.on("error", () => undefined);
    socket.once("close", () => {
      this.#gone.abort();
      this.#relieved();
    });
  }

  async serve(): Promise<void> {
    const late = setTimeout(() => this.#socket.destroy(), handshakeMillis);
    try {
      const chosen = await this.#handshake();
      clearTimeout(late);
      if (chosen !== undefined) await this.#transmit(chosen);
    } finally {
      clearTimeout(late);
      this.#socket.destroySoon();
    }
  }

  async #handshake(): Promise<NbdExport | undefined> {
    this.#socket.write(wire.greeting());
    const flagBytes = await this.#reader.take(wire.clientFlagsBytes);
    const flags = flagBytes && wire.parseClientFlags(flagBytes);
    while (flags !== undefined) {
      const headerBytes = await this.#reader.take(wire.optionHeaderBytes);
      const header = headerBytes && wire.parseOptionHeader(headerBytes);
      if (header === undefined || header.length > wire.maxOptionBytes) return undefined;
      const data = await this.#reader.take(header.length);
      if (data === undefined) return undefined;
      if (header.option === wire.options.exportName) {
        const found = this.#find(data.toString("utf8"));
        if (found !== undefined)
          this.#socket.write(Buffer.concat([wire.sizeAndFlags(found.bytes), Buffer.alloc(flags.noZeroes ? 0 : 124)]));
        return found;
      }
      const { replies, chosen, ended } = this.#answerOption(header.option, data);
      for (const { type, content } of replies) this.#socket.write(wire.optionReply(header.option, type, content));
      if (chosen !== undefined || ended === true) return chosen;
    }
    return undefined;
  }

  #answerOption(
    option: number,
    data: Buffer,
  ): { replies: { type: number; content?: Buffer }[]; chosen?: NbdExport | undefined; ended?: boolean } {
    const { ack, server, info, unsupported, invalid, unknown } = wire.optionReplies;
    switch (option) {
      case wire.options.abort:
        return { replies: [{ type: ack }], ended: true };
      case wire.options.list: {
        const listed = this.#exports.map(({ name }) => ({ type: server, content: wire.listedExport(name) }));
        return { replies: [...listed, { type: ack }] };
      }
      case wire.options.info:
      case wire.options.go: {
        const name = wire.parseExportName(data);
        if (name === undefined) return { replies: [{ type: invalid }] };
        const found = this.#find(name);
        if (found === undefined) return { replies: [{ type: unknown }] };
        const infos = wire.exportInfos(found.bytes).map((content) => ({ type: info, content }));
        return { replies: [...infos, { type: ack }], chosen: option === wire.options.go ? found : undefined };
      }
      default:
        return { replies: [{ type: unsupported }] };
    }
  }

  #find(wanted: string): NbdExport | undefined {
    return this.#exports.find(({ name }) => name === wanted);
  }

  async #transmit(chosen: NbdExport): Promise<void> {
    for (;;) {
      const bytes = await this.#reader.take(wire.requestBytes);
      const request = bytes && wire.parseRequest(bytes);
      if (request === undefined || request.command === wire.commands.disconnect) return;
      // what a client wants to write follows its request
      if (request.command === wire.commands.write && (await this.#skip(request.length)) === undefined) return;
      while (this.#pending > pendingLimit && !this.#socket.destroyed) await new Promise<void>((resolve) => (this.#relieved = resolve));
      const refusal = refusalOf(request, chosen);
      if (refusal !== undefined) this.#socket.write(wire.replyHeader(request.handle, refusal));
      else void this.#read(chosen, request);
    }
  }

  /** Replies in the order in which data comes, not in which it was asked for. */
  async #read(chosen: NbdExport, { handle, offset, length }: wire.Request): Promise<void> {
    this.#pending += length;
    let reply: Buffer[];
    try {
      const data = await chosen.read(offset, length, this.#gone.signal);
      reply = [wire.replyHeader(handle, wire.errors.none), data];
    } catch {
      reply = [wire.replyHeader(handle, wire.errors.io)];
    }
    const sent = (): void => {
      this.#pending -= length;
      this.#relieved();
    };
    if (this.#socket.destroyed) return sent();
    this.#socket.cork();
    for (const [position, bytes] of reply.entries()) this.#socket.write(bytes, position === reply.length - 1 ? sent : undefined);
    this.#socket.uncork();
  }

  async #skip(length: number): Promise<true | undefined> {
    for (let left = length; left > 0; left -= Math.min(left, 65_536))
      if ((await this.#reader.take(Math.min(left, 65_536))) === undefined) return undefined;
    return true;
  }
}

function refusalOf({ command, offset, length }: wire.Request, { bytes }: NbdExport): number | undefined {
  if (command !== wire.commands.read) return wire.errors.notPermitted;
  if (length > wire.maxReadBytes || offset + length > bytes) return wire.errors.invalid;
  return undefined;
}
