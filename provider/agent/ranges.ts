import { once } from "node:events";
import { open, type FileHandle } from "node:fs/promises";
import type { Duplex } from "node:stream";
import { ByteReader } from "./byteReader.ts";

/** What a connection is asked to become by HTTP's `Upgrade`. */
export const rangesProtocol = "cloudlet-ranges";

const questionBytes = 12;
const pieceBytes = 256 * 1024;

/** Asks for a range: its offset in 8 bytes and its length in 4, big-endian. */
export function questionFor({ offset, bytes }: { offset: number; bytes: number }): Buffer {
  const question = Buffer.alloc(questionBytes);
  question.writeBigUInt64BE(BigInt(offset), 0);
  question.writeUInt32BE(bytes, 8);
  return question;
}

/**
 * Answers questions for ranges of one file, each by nothing but its bytes, in their order, until the other side ends; a
 * question for what is not there ends the connection. Many questions may be on their way at once, which is why this is no
 * HTTP: Node's server refuses or forgets some of those that come while it waits for the link.
 */
export async function serveRanges(socket: Duplex, head: Buffer, path: string): Promise<void> {
  // a connection that breaks ends it
  socket.on("error", () => undefined);
  const file = await open(path);
  try {
    const { size } = await file.stat();
    socket.write(`HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ${rangesProtocol}\r\n\r\n`);
    if (head.length > 0) socket.unshift(head);
    const reader = new ByteReader(socket);
    for (;;) {
      const question = await reader.take(questionBytes);
      if (question === undefined) return;
      const [offset, bytes] = [Number(question.readBigUInt64BE(0)), question.readUInt32BE(8)];
      if (offset + bytes > size) return;
      for (let sent = 0; sent < bytes; sent += pieceBytes) {
        if (socket.destroyed) return;
        const piece = await readPiece(file, offset + sent, Math.min(pieceBytes, bytes - sent));
        if (!socket.write(piece)) await drained(socket);
      }
    }
  } finally {
    socket.destroy();
    await file.close();
  }
}

/** Returns also where the connection ends instead. */
async function drained(socket: Duplex): Promise<void> {
  // whose end was told before would never be told again
  if (socket.destroyed) return;
  const over = new AbortController();
  const { signal } = over;
  const waiting = Promise.race([once(socket, "drain", { signal }), once(socket, "close", { signal })]);
  await waiting.catch(() => undefined).finally(() => over.abort());
}

async function readPiece(file: FileHandle, position: number, length: number): Promise<Buffer> {
  const piece = Buffer.allocUnsafe(length);
  for (let at = 0; at < length;) {
    const { bytesRead } = await file.read(piece, at, length - at, position + at);
    if (bytesRead === 0) throw new Error("the file has become shorter");
    at += bytesRead;
  }
  return piece;
}
