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

interface Request {
  command: number;
  offset: number;
  length: number;
  payload?: Buffer;
}

interface Pending {
  what: string;
  use(type: number, data: Buffer): void;
  resolve(): void;
  reject(error: unknown): void;
}

/**
 * The part of the NBD protocol that is needed to read and write an export of QEMU's at a unix socket, and to ask what of it
 * is allocated or dirty. Requests do not wait for each other: a busy QEMU takes milliseconds for each.
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */
export class NbdClient {
  readonly #socket: Socket;
  readonly #reader: ByteReader;
  readonly #label: string;
  /** Numbers of the meta contexts, by name. */
  readonly #contexts = new Map<string, number>();
  readonly #pending = new Map<bigint, Pending>();
  #requests = 0n;
  bytes = 0;

  private constructor(socket: Socket, label: string) {
    this.#socket = socket;
    this.#label = label;
    this.#reader = new ByteReader(socket);
  }

  /** `contexts` are the meta contexts that `extents` may be asked about. */
  static async connect(path: string, name: string, contexts: readonly string[] = []): Promise<NbdClient> {
    const socket = createConnection(path);
    socket.on("error", () => undefined);
    const client = new NbdClient(socket, `the disk ${name} at ${path}`);
    try {
      await client.#inTime(client.#shakeHands(name, contexts), "greet");
      void client.#listen();
      return client;
    } catch (error) {
      socket.destroy();
      throw error;
    }
  }

  /** At most a MiB. */
  async read(offset: number, length: number): Promise<Buffer> {
    const whole = Buffer.alloc(length);
    await this.#ask("read", { command: commands.read, offset, length }, (type, data) => {
      if (type === chunks.data) data.copy(whole, Number(data.readBigUInt64BE(0)) - offset, 8);
    });
    return whole;
  }

  /** The bytes must stay as they are until it is done. */
  async write(offset: number, data: Buffer): Promise<void> {
    for (let done = 0; done < data.length; done += longestRequest) {
      const payload = data.subarray(done, done + longestRequest);
      await this.#ask("write", { command: commands.write, offset: offset + done, length: payload.length, payload });
    }
  }

  async zeros(offset: number, length: number): Promise<void> {
    // QEMU takes less than 4 GiB at a time
    for (let done = 0; done < length; done += 2 ** 30)
      await this.#ask("zero", { command: commands.writeZeroes, offset: offset + done, length: Math.min(2 ** 30, length - done) });
  }

  /** What was written before, and is done. */
  async flush(): Promise<void> {
    await this.#ask("flush", { command: commands.flush, offset: 0, length: 0 });
  }

  /** What the context says, from the beginning to the end. */
  async extents(context: string): Promise<Extent[]> {
    const number = this.#contexts.get(context);
    const found: Extent[] = [];
    for (let offset = 0; offset < this.bytes;) {
      const part = await this.#extents(offset, number);
      if (part.length === 0) throw this.#failed("describes nothing");
      for (const extent of part) found.push(extent);
      const last = part.at(-1);
      offset = last === undefined ? this.bytes : last.offset + last.length;
    }
    return found;
  }

  close(): void {
    if (this.#socket.writable) this.#send(this.#requests++, { command: commands.disconnect, offset: 0, length: 0 });
    this.#socket.end();
    this.#socket.destroySoon();
  }

  async #shakeHands(name: string, contexts: readonly string[]): Promise<void> {
    const greeting = await this.#take(18);
    if (greeting.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw this.#failed("does not speak NBD");
    this.#socket.write(uint32(clientFlags));
    await this.#option(options.structuredReply, Buffer.alloc(0));
    const exportName = Buffer.concat([uint32(name.length), Buffer.from(name)]);
    if (contexts.length > 0) {
      const queries = contexts.flatMap((context) => [uint32(context.length), Buffer.from(context)]);
      const replies = await this.#option(options.setMetaContext, Buffer.concat([exportName, uint32(contexts.length), ...queries]));
      for (const { type, data } of replies)
        if (type === optionReply.metaContext) this.#contexts.set(data.toString("utf8", 4), data.readUInt32BE(0));
      for (const context of contexts) if (!this.#contexts.has(context)) throw this.#failed(`knows nothing of ${context}`);
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

  async #extents(offset: number, context: number | undefined): Promise<Extent[]> {
    const length = Math.min(2 ** 32 - 2 ** 20, this.bytes - offset);
    const found: Extent[] = [];
    await this.#ask("describe", { command: commands.blockStatus, offset, length }, (type, data) => {
      if (type !== chunks.blockStatus || data.readUInt32BE(0) !== context) return;
      let at = offset;
      for (let entry = 4; entry < data.length; entry += 8) {
        const extent = { offset: at, length: data.readUInt32BE(entry), flags: data.readUInt32BE(entry + 4) };
        found.push(extent);
        at += extent.length;
      }
    });
    return found;
  }

  async #ask(what: string, request: Request, use: Pending["use"] = () => undefined): Promise<void> {
    const handle = this.#requests++;
    const answered = new Promise<void>((resolve, reject) => this.#pending.set(handle, { what, use, resolve, reject }));
    if (this.#socket.destroyed) this.#fail(this.#ended());
    else this.#send(handle, request);
    await this.#inTime(answered, what).finally(() => this.#pending.delete(handle));
  }

  #send(handle: bigint, { command, offset, length, payload }: Request): void {
    const head = Buffer.alloc(28);
    head.writeUInt32BE(requestMagic, 0);
    head.writeUInt16BE(command, 6);
    head.writeBigUInt64BE(handle, 8);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(length, 24);
    this.#socket.write(head);
    if (payload !== undefined) this.#socket.write(payload);
  }

  /** Hands answers, in whatever order they come, to those who asked. */
  async #listen(): Promise<void> {
    try {
      for (;;) await this.#reply();
    } catch (error) {
      this.#fail(error);
      this.#socket.destroy();
    }
  }

  async #reply(): Promise<void> {
    const magic = (await this.#take(4)).readUInt32BE(0);
    if (magic === simpleReplyMagic) {
      const head = await this.#take(12);
      const [error, pending] = [head.readUInt32BE(0), this.#pending.get(head.readBigUInt64BE(4))];
      if (error === 0) pending?.resolve();
      else pending?.reject(this.#failed(`cannot ${pending.what}: error ${String(error)}`));
      return;
    }
    if (magic !== structuredReplyMagic) throw this.#failed("answers something else");
    const head = await this.#take(16);
    const [flags, type, length] = [head.readUInt16BE(0), head.readUInt16BE(2), head.readUInt32BE(12)];
    const pending = this.#pending.get(head.readBigUInt64BE(4));
    const data = await this.#take(length);
    if (type >= 0x8000) pending?.reject(this.#failed(`cannot ${pending.what}: ${data.toString("utf8", 6)}`));
    else pending?.use(type, data);
    if ((flags & doneFlag) !== 0) pending?.resolve();
  }

  #fail(error: unknown): void {
    for (const pending of this.#pending.values()) pending.reject(error);
  }

  #ended(): CloudletError {
    return new CloudletError("UNREACHABLE", `the connection to ${this.#label} ended`);
  }

  async #take(length: number): Promise<Buffer> {
    const bytes = await this.#reader.take(length);
    if (bytes === undefined) throw this.#ended();
    return bytes;
  }

  async #inTime<T>(work: Promise<T>, what: string): Promise<T> {
    const timer = setTimeout(() => {
      this.#fail(new CloudletError("TIMEOUT", `${this.#label} did not ${what} in time`));
      this.#socket.destroy();
    }, answerMillis);
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
