/** What the headers of a zstd frame say about it (RFC 8878). */
export interface Frame {
  /** Its compressed size, headers included. */
  bytes: number;
  /** The size of its content, where its header says so. */
  rawBytes: number | undefined;
}

const magic = 0xfd2fb528;
const contentSizeBytes = [0, 2, 4, 8];
const dictionaryIdBytes = [0, 1, 2, 4];

/** The frame that begins at `start`; undefined when there is no whole one. Nothing is decompressed. */
export function frameAt(buffer: Buffer, start: number): Frame | undefined {
  const header = headerAt(buffer, start);
  if (header === undefined) return undefined;
  let position = header.end;
  for (;;) {
    if (position + 3 > buffer.length) return undefined;
    const block = buffer.readUIntLE(position, 3);
    const isLast = (block & 1) === 1;
    const type = (block >> 1) & 3;
    if (type === 3) return undefined;
    // a run-length block is one byte, however long it says to be
    position += 3 + (type === 1 ? 1 : block >> 3);
    if (isLast) break;
  }
  const end = position + (header.hasChecksum ? 4 : 0);
  return end > buffer.length ? undefined : { bytes: end - start, rawBytes: header.rawBytes };
}

function headerAt(buffer: Buffer, start: number): { end: number; hasChecksum: boolean; rawBytes: number | undefined } | undefined {
  if (start + 5 > buffer.length || buffer.readUInt32LE(start) !== magic) return undefined;
  const descriptor = buffer[start + 4] ?? 0;
  const isSingleSegment = (descriptor & 32) !== 0;
  const sizeAt = start + 5 + (isSingleSegment ? 0 : 1) + (dictionaryIdBytes[descriptor & 3] ?? 0);
  const sizeBytes = isSingleSegment && descriptor >> 6 === 0 ? 1 : (contentSizeBytes[descriptor >> 6] ?? 0);
  if (sizeAt + sizeBytes > buffer.length) return undefined;
  return { end: sizeAt + sizeBytes, hasChecksum: (descriptor & 4) !== 0, rawBytes: numberAt(buffer, sizeAt, sizeBytes) };
}

function numberAt(buffer: Buffer, offset: number, bytes: number): number | undefined {
  switch (bytes) {
    case 0:
      return undefined;
    case 2:
      return buffer.readUInt16LE(offset) + 256;
    case 8:
      return Number(buffer.readBigUInt64LE(offset));
    default:
      return buffer.readUIntLE(offset, bytes);
  }
}
