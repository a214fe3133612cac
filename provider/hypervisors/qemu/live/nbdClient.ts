import { createConnection, type Socket } from "node:net";
import { CloudletError } from "../../../core/errors.ts";
import { ByteReader } from "../../../agent/byteReader.ts";

/** Bytes of a disk from `offset` on, and what a meta context says of them. */
export interface Extent {
  offset: number;
  length: number;
  flags: number;
}

const optionMagic = Buffer.from("IHAVEOPT");
const options = { structuredReply: 8, setMetaContext: 10, go: 7 } as const;
const optionReply = { ack: 1, info: 3, metaContext: 4 } as const;
const commands = { read: 0, write: 1, disconnect: 2, flush: 3, writeZeroes: 6, blockStatus: 7 } as const;
const chunks = { none: 0, data: 1, hole: 2, blockStatus: 5 } as const;
const requestMagic = 0x25609513;
const simpleReplyMagic = 0x67446698;
const structuredReplyMagic = 0x668e33ef;
const doneFlag = 1;
const clientFlags = 3;
const longestRequest = 1024 * 1024;
/** Of requests that a far disk may hold up. */
const answerMillis = 60_000;

/**
 * The part of the NBD protocol that is needed to read and write an export of QEMU's at a unix socket, and to ask what of it
 * is allocated or dirty. One request at a time. https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
export class NbdClient {
  readonly #socket: Socket;
  readonly #reader: ByteReader;
  readonly #label: string;
  #turn: Promise<unknown> = Promise.resolve();
  bytes = 0;

  private constructor(socket: Socket, label: string) {
    this.#socket = socket;
    this.#label = label;
    this.#reader = new ByteReader(socket);
  }

  /** `context` names the meta context that `extents` asks about. */
  static async connect(path: string, name: string, context?: string): Promise<NbdClient> {
    const socket = createConnection(path);
    socket.on("error", () => undefined);
    const client = new NbdClient(socket, `the disk ${name} at ${path}`);
    try {
      await client.#inTime(client.#shakeHands(name, context), "greet");
      return client;
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.#inTurn("read", () => this.#read(offset, length));
  }

  write(offset: number, data: Buffer): Promise<void> {
    return this.#inTurn("write", async () => {
      for (let done = 0; done < data.length; done += longestRequest) {
        const part = data.subarray(done, done + longestRequest);
        this.#request(commands.write, offset + done, part.length);
        this.#socket.write(part);
        await this.#replies("write", () => undefined);
      }
    });
  }

  zeros(offset: number, length: number): Promise<void> {
    return this.#inTurn("zero", async () => {
      // QEMU takes less than 4 GiB at a time
      for (let done = 0; done < length; done += 2 ** 30) {
        this.#request(commands.writeZeroes, offset + done, Math.min(2 ** 30, length - done));
        await this.#replies("zero", () => undefined);
      }
    });
  }

  flush(): Promise<void> {
    return this.#inTurn("flush", async () => {
      this.#request(commands.flush, 0, 0);
      await this.#replies("flush", () => undefined);
    });
  }

  /** What the context says, from the beginning to the end. */
  async extents(): Promise<Extent[]> {
    const found: Extent[] = [];
    for (let offset = 0; offset < this.bytes;) {
      const part = await this.#inTurn("describe", () => this.#extents(offset));
      if (part.length === 0) throw this.#failed("describes nothing");
      for (const extent of part) found.push(extent);
      const last = part.at(-1);
      offset = last === undefined ? this.bytes : last.offset + last.length;
    }
    return found;
  }

  close(): void {
    if (this.#socket.writable) this.#request(commands.disconnect, 0, 0);
    this.#socket.end();
    this.#socket.destroySoon();
  }

  async #shakeHands(name: string, context: string | undefined): Promise<void> {
    const greeting = await this.#take(18);
    if (greeting.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw this.#failed("does not speak NBD");
    this.#socket.write(uint32(clientFlags));
    await this.#option(options.structuredReply, Buffer.alloc(0));
    const exportName = Buffer.concat([uint32(name.length), Buffer.from(name)]);
    if (context !== undefined) {
      const query = Buffer.concat([exportName, uint32(1), uint32(context.length), Buffer.from(context)]);
      const replies = await this.#option(options.setMetaContext, query);
      if (!replies.some(({ type }) => type === optionReply.metaContext)) throw this.#failed(`knows nothing of ${context}`);
    }
    const infos = await this.#option(options.go, Buffer.concat([exportName, Buffer.alloc(2)]));
    const size = infos.find(({ type, data }) => type === optionReply.info && data.readUInt16BE(0) === 0);
    if (size === undefined) throw this.#failed("does not say how large it is");
    this.bytes = Number(size.data.readBigUInt64BE(2));
  }

  async #option(option: number, data: Buffer): Promise<{ type: number; data: Buffer }[]> {
    this.#socket.write(Buffer.concat([optionMagic, uint32(option), uint32(data.length), data]));
    const replies: { type: number; data: Buffer }[] = [];
    for (;;) {
      const head = await this.#take(20);
      const [type, length] = [head.readUInt32BE(12), head.readUInt32BE(16)];
      const reply = { type, data: await this.#take(length) };
      if (type >= 2 ** 31) throw this.#failed(`refuses option ${String(option)}: ${reply.data.toString("utf8")}`);
      if (type === optionReply.ack) return replies;
      replies.push(reply);
    }
  }

  async #read(offset: number, length: number): Promise<Buffer> {
    const whole = Buffer.alloc(length);
    for (let done = 0; done < length; done += longestRequest) {
      this.#request(commands.read, offset + done, Math.min(longestRequest, length - done));
      await this.#replies("read", (type, data) => {
        if (type === chunks.data) data.copy(whole, Number(data.readBigUInt64BE(0)) - offset, 8);
      });
    }
    return whole;
  }

  async #extents(offset: number): Promise<Extent[]> {
    const length = Math.min(2 ** 32 - 2 ** 20, this.bytes - offset);
    const found: Extent[] = [];
    this.#request(commands.blockStatus, offset, length);
    await this.#replies("describe", (type, data) => {
      if (type !== chunks.blockStatus) return;
      let at = offset;
      for (let entry = 4; entry < data.length; entry += 8) {
        const extent = { offset: at, length: data.readUInt32BE(entry), flags: data.readUInt32BE(entry + 4) };
        found.push(extent);
        at += extent.length;
      }
    });
    return found;
  }

  #request(command: number, offset: number, length: number): void {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(requestMagic, 0);
    head.writeUInt16BE(command, 6);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(length, 24);
    this.#socket.write(head);
  }

  /** The answers to one request, until QEMU says that they were all. */
  async #replies(what: string, use: (type: number, data: Buffer) => void): Promise<void> {
    for (;;) {
      const magic = (await this.#take(4)).readUInt32BE(0);
      if (magic === simpleReplyMagic) {
        const error = (await this.#take(12)).readUInt32BE(0);
        if (error !== 0) throw this.#failed(`cannot ${what}: error ${String(error)}`);
        return;
      }
      if (magic !== structuredReplyMagic) throw this.#failed("answers something else");
      const head = await this.#take(16);
      const [flags, type, length] = [head.readUInt16BE(0), head.readUInt16BE(2), head.readUInt32BE(12)];
      const data = await this.#take(length);
      if (type >= 0x8000) throw this.#failed(`cannot ${what}: ${data.toString("utf8", 6)}`);
      use(type, data);
      if ((flags & doneFlag) !== 0) return;
    }
  }

  async #take(length: number): Promise<Buffer> {
    const bytes = await this.#reader.take(length);
    if (bytes === undefined) throw new CloudletError("UNREACHABLE", `the connection to ${this.#label} ended`);
    return bytes;
  }

  #inTurn<T>(what: string, work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(() => this.#inTime(work(), what));
    this.#turn = mine.catch(() => undefined);
    return mine;
  }

  async #inTime<T>(work: Promise<T>, what: string): Promise<T> {
    const timer = setTimeout(
      () => this.#socket.destroy(new CloudletError("TIMEOUT", `${this.#label} did not ${what} in time`)),
      answerMillis,
    );
    return work.finally(() => clearTimeout(timer));
  }

  #failed(why: string): CloudletError {
    return new CloudletError("FAILED", `${this.#label} ${why}`);
  }
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
