import type { FileHandle } from "node:fs/promises";
import { CloudletError } from "../core/errors.ts";
import { blockBytes } from "./manifest.ts";

const headerBytes = 104;
const entriesPerTable = blockBytes / 8;
/** Flags are above and below of where a cluster is. */
const offsetMask = 0x00fffffffffffe00n;

/** For each block of an image of ours (`qcow2Layout`) the cluster of its file that holds it; 0 = the file has nothing of it, or zeros. */
export async function clustersOf(file: FileHandle): Promise<Uint32Array> {
  const header = await read(file, 0, headerBytes);
  if (header.toString("latin1", 0, 4) !== "QFI\xfb" || 2 ** header.readUInt32BE(20) !== blockBytes)
    throw new CloudletError("INTEGRITY", "the parent's memory is no image that was recombined from an overlay");
  const virtualBytes = Number(header.readBigUInt64BE(24));
  const tables = await read(file, Number(header.readBigUInt64BE(40)), header.readUInt32BE(36) * 8);
  const clusters = new Uint32Array(Math.ceil(virtualBytes / blockBytes));
  for (let table = 0; table * 8 < tables.length; table++) {
    const at = clusterIn(tables, table);
    if (at === 0) continue;
    const entries = await read(file, at * blockBytes, blockBytes);
    for (let entry = 0; entry < entriesPerTable; entry++) {
      const block = table * entriesPerTable + entry;
      if (block < clusters.length) clusters[block] = clusterIn(entries, entry);
    }
  }
  return clusters;
}

function clusterIn(table: Buffer, entry: number): number {
  return Number(table.readBigUInt64BE(entry * 8) & offsetMask) / blockBytes;
}

async function read(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset);
  if (bytesRead < length) throw new CloudletError("INTEGRITY", "the parent's memory was cut off");
  return buffer;
}
