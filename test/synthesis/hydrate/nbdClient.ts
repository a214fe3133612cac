import { connect, type Socket } from "node:net";
import { expect } from "vitest";

/** A client's side of the protocol, byte by byte. */
export async function speaking(socketPath: string): Promise<{ socket: Socket; take(length: number): Promise<Buffer> }> {
  const socket = connect(socketPath);
  let held = Buffer.alloc(0);
  let wake = (): void => undefined;
  socket.on("data", (data) => {
    held = Buffer.concat([held, data]);
    wake();
  });
  socket.on("error", () => undefined);
  socket.on("close", () => wake());
  const take = async (length: number): Promise<Buffer> => {
    while (held.length < length) {
      if (socket.destroyed) throw new Error("the server hung up");
      await new Promise<void>((resolve) => (wake = resolve));
    }
    const taken = held.subarray(0, length);
    held = held.subarray(length);
    return taken;
  };
  expect((await take(18)).toString("latin1", 0, 16)).toBe("NBDMAGICIHAVEOPT");
  return { socket, take };
}

export const clientFlags = Buffer.from([0, 0, 0, 3]);

export function option(number: number, data: Buffer): Buffer {
  const header = Buffer.concat([Buffer.from("IHAVEOPT"), Buffer.alloc(8)]);
  header.writeUInt32BE(number, 8);
  header.writeUInt32BE(data.length, 12);
  return Buffer.concat([header, data]);
}

export function request(what: { command?: number; handle: number; offset: number; length: number }): Buffer {
  const bytes = Buffer.alloc(28);
  bytes.writeUInt32BE(0x25609513);
  bytes.writeUInt16BE(what.command ?? 0, 6);
  bytes.writeUInt32BE(what.handle, 12);
  bytes.writeBigUInt64BE(BigInt(what.offset), 16);
  bytes.writeUInt32BE(what.length, 24);
  return bytes;
}

/** Reads one range of an export on a connection of its own. */
export async function readOnce(socketPath: string, name: string, range: { offset: number; length: number }): Promise<Buffer> {
  const { socket, take } = await speaking(socketPath);
  try {
    socket.write(Buffer.concat([clientFlags, option(1, Buffer.from(name))]));
    await take(10);
    socket.write(request({ handle: 1, ...range }));
    const header = await take(16);
    if (header.readUInt32BE(4) !== 0) throw new Error(`error ${String(header.readUInt32BE(4))}`);
    return await take(range.length);
  } finally {
    socket.destroy();
  }
}
