/**
 * The part of the NBD protocol that a read-only server needs: fixed newstyle handshake, simple replies.
 * https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md
 */

const greetingMagic = Buffer.from("NBDMAGICIHAVEOPT");
const optionMagic = greetingMagic.subarray(8);
const optionReplyMagic = Buffer.from("0003e889045565a9", "hex");
const requestMagic = 0x25609513;
const replyMagic = 0x67446698;

const fixedNewstyle = 1;
const noZeroes = 2;
// has flags, read-only, any number of connections sees the same
const exportFlags = 1 | 2 | 256;
const exportInfo = 0;
const blockSizeInfo = 3;

/** What a client may ask for in one request; more is refused. */
export const maxReadBytes = 32 * 1024 * 1024;
/** Longer options are sent by nobody who means well. */
export const maxOptionBytes = 64 * 1024;

export const options = { exportName: 1, abort: 2, list: 3, info: 6, go: 7 } as const;
export const optionReplies = {
  ack: 1,
  server: 2,
  info: 3,
  unsupported: 0x80000001,
  invalid: 0x80000003,
  unknown: 0x80000006,
} as const;
export const commands = { read: 0, write: 1, disconnect: 2 } as const;
/** Numbers of Linux, as the protocol wants them. */
export const errors = { none: 0, notPermitted: 1, io: 5, invalid: 22, shuttingDown: 108 } as const;

export function greeting(): Buffer {
  return Buffer.concat([greetingMagic, uint16(fixedNewstyle | noZeroes)]);
}

export const clientFlagsBytes = 4;

/** Whether a client that wants no zeros after an export's description said so; undefined = it speaks something else. */
export function parseClientFlags(bytes: Buffer): { noZeroes: boolean } | undefined {
  const flags = bytes.readUInt32BE();
  return (flags & fixedNewstyle) === 0 || flags > (fixedNewstyle | noZeroes) ? undefined : { noZeroes: (flags & noZeroes) !== 0 };
}

export const optionHeaderBytes = 16;

export function parseOptionHeader(bytes: Buffer): { option: number; length: number } | undefined {
  if (!bytes.subarray(0, 8).equals(optionMagic)) return undefined;
  return { option: bytes.readUInt32BE(8), length: bytes.readUInt32BE(12) };
}

export function optionReply(option: number, type: number, data: Buffer = Buffer.alloc(0)): Buffer {
  return Buffer.concat([optionReplyMagic, uint32(option), uint32(type), uint32(data.length), data]);
}

/** The export's name in an option `info` or `go`. */
export function parseExportName(data: Buffer): string | undefined {
  if (data.length < 6) return undefined;
  const length = data.readUInt32BE();
  if (data.length < 6 + length) return undefined;
  const wanted = data.readUInt16BE(4 + length);
  return data.length === 6 + length + 2 * wanted ? data.toString("utf8", 4, 4 + length) : undefined;
}

export function listedExport(name: string): Buffer {
  const bytes = Buffer.from(name);
  return Buffer.concat([uint32(bytes.length), bytes]);
}

/** What `info` and `go` say about an export, each in a reply of its own. */
export function exportInfos(bytes: number): Buffer[] {
  const sizes = [uint32(1), uint32(4096), uint32(maxReadBytes)];
  return [Buffer.concat([uint16(exportInfo), sizeAndFlags(bytes)]), Buffer.concat([uint16(blockSizeInfo), ...sizes])];
}

/** What `exportName` says, for clients of the older kind. */
export function sizeAndFlags(bytes: number): Buffer {
  const size = Buffer.alloc(8);
  size.writeBigUInt64BE(BigInt(bytes));
  return Buffer.concat([size, uint16(exportFlags)]);
}

export interface Request {
  command: number;
  /** The client's own number for it, repeated in the reply. */
  handle: Buffer;
  offset: number;
  length: number;
}

export const requestBytes = 28;

export function parseRequest(bytes: Buffer): Request | undefined {
  if (bytes.readUInt32BE() !== requestMagic) return undefined;
  return {
    command: bytes.readUInt16BE(6),
    handle: bytes.subarray(8, 16),
    offset: Number(bytes.readBigUInt64BE(16)),
    length: bytes.readUInt32BE(24),
  };
}

export function replyHeader(handle: Buffer, error: number): Buffer {
  return Buffer.concat([uint32(replyMagic), uint32(error), handle]);
}

function uint16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}
