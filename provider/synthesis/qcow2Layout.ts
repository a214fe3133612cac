import { CloudletError } from "../core/errors.ts";
import { type ImageIndex, zeroBlock } from "./blockIndex.ts";
import { blockBytes } from "./manifest.ts";

export interface LayoutOptions {
  virtualBytes: number;
  index: ImageIndex;
  /** Blocks that the pack holds. */
  storedBlocks: number;
  below?: { file: string; format: string } | undefined;
}

/** A qcow2 file, known down to the last byte of its metadata before any of its data is there. */
export interface Qcow2Layout {
  /** Everything in front of the data. */
  metadata: Buffer;
  fileBytes: number;
  /** Which block of the pack each data cluster is; ascending, so data comes in the order of the pack. */
  slots: Uint32Array;
  /** The other way round; `noSlot` = the image does not have this block. */
  slotOf: Uint32Array;
}

export const noSlot = 0xffffffff;

const entriesPerTable = blockBytes / 8;
const refcountsPerBlock = blockBytes / 4;
// in an entry's first byte: nobody else refers to the cluster
const copied = 0x80;
const zeroCluster = 1;
const maxBackingPath = 1023;

/** Header, tables and reference counts in front; then one cluster for each block, equal ones shared. */
export function qcow2Layout(options: LayoutOptions): Qcow2Layout {
  const { slots, slotOf, references } = slotsOf(options);
  const plan = planOf(options, slots.length);
  const metadata = Buffer.alloc(plan.dataCluster * blockBytes);
  writeHeader(metadata, options, plan);
  writeTables(metadata, { index: options.index, plan, slotOf, references });
  writeRefcounts(metadata, plan, references);
  return { metadata, fileBytes: (plan.dataCluster + slots.length) * blockBytes, slots, slotOf };
}

function slotsOf({ index, storedBlocks }: LayoutOptions): { slots: Uint32Array; slotOf: Uint32Array; references: Uint32Array } {
  const counts = new Uint32Array(storedBlocks);
  for (const block of index.stored) if (block !== zeroBlock) counts[block] = (counts[block] ?? 0) + 1;
  const slots = new Uint32Array(counts.reduce((sum, count) => sum + (count > 0 ? 1 : 0), 0));
  const slotOf = new Uint32Array(storedBlocks).fill(noSlot);
  const references = new Uint32Array(slots.length);
  let slot = 0;
  for (const [block, count] of counts.entries()) {
    if (count === 0) continue;
    slots[slot] = block;
    references[slot] = count;
    slotOf[block] = slot++;
  }
  return { slots, slotOf, references };
}

/** Positions and sizes in clusters. */
interface Plan {
  l1Entries: number;
  l1Cluster: number;
  refcountTableCluster: number;
  refcountTableClusters: number;
  refcountBlockCluster: number;
  refcountBlocks: number;
  l2Cluster: number;
  /** Which L2 tables there are, ascending. */
  l2Tables: number[];
  dataCluster: number;
}

function planOf({ virtualBytes, index }: LayoutOptions, dataClusters: number): Plan {
  const l1Entries = Math.ceil(virtualBytes / (blockBytes * entriesPerTable));
  const l1Clusters = Math.max(1, Math.ceil(l1Entries / entriesPerTable));
  const tables = new Set<number>();
  for (const block of index.blocks) tables.add(Math.floor(block / entriesPerTable));
  const others = 1 + l1Clusters + tables.size + dataClusters;
  // reference counts count themselves too
  let refcountBlocks = 1;
  let refcountTableClusters = 1;
  for (let before = 0; before !== refcountBlocks;) {
    before = refcountBlocks;
    refcountTableClusters = Math.ceil(refcountBlocks / entriesPerTable);
    refcountBlocks = Math.ceil((others + refcountTableClusters + refcountBlocks) / refcountsPerBlock);
  }
  refcountTableClusters = Math.ceil(refcountBlocks / entriesPerTable);
  const refcountTableCluster = 1 + l1Clusters;
  const refcountBlockCluster = refcountTableCluster + refcountTableClusters;
  const l2Cluster = refcountBlockCluster + refcountBlocks;
  return {
    l1Entries,
    l1Cluster: 1,
    refcountTableCluster,
    refcountTableClusters,
    refcountBlockCluster,
    refcountBlocks,
    l2Cluster,
    l2Tables: [...tables],
    dataCluster: l2Cluster + tables.size,
  };
}

function writeHeader(metadata: Buffer, { virtualBytes, below }: LayoutOptions, plan: Plan): void {
  const headerBytes = 104;
  metadata.write("QFI\xfb", 0, "latin1");
  metadata.writeUInt32BE(3, 4);
  metadata.writeUInt32BE(Math.log2(blockBytes), 20);
  writeNumber(metadata, virtualBytes, 24);
  metadata.writeUInt32BE(plan.l1Entries, 36);
  writeNumber(metadata, plan.l1Cluster * blockBytes, 40);
  writeNumber(metadata, plan.refcountTableCluster * blockBytes, 48);
  metadata.writeUInt32BE(plan.refcountTableClusters, 56);
  // counts of 32 bits: a block may be shared more often than 16 bits can count
  metadata.writeUInt32BE(5, 96);
  metadata.writeUInt32BE(headerBytes, 100);
  if (below === undefined) return;
  const path = Buffer.from(below.file);
  if (path.length > maxBackingPath) {
    throw new CloudletError("INVALID", `the path ${below.file} is too long for a qcow2 file to refer to`, { fix: "use a shorter path" });
  }
  const format = Buffer.from(below.format);
  metadata.writeUInt32BE(0xe2792aca, headerBytes);
  metadata.writeUInt32BE(format.length, headerBytes + 4);
  format.copy(metadata, headerBytes + 8);
  // extensions are padded to 8 bytes, and an empty one ends them
  const pathOffset = headerBytes + 8 + Math.ceil(format.length / 8) * 8 + 8;
  path.copy(metadata, pathOffset);
  writeNumber(metadata, pathOffset, 8);
  metadata.writeUInt32BE(path.length, 16);
}

interface Tables {
  index: ImageIndex;
  plan: Plan;
  slotOf: Uint32Array;
  references: Uint32Array;
}

function writeTables(metadata: Buffer, { index, plan, slotOf, references }: Tables): void {
  for (const [position, table] of plan.l2Tables.entries()) {
    writeCopied(metadata, (plan.l2Cluster + position) * blockBytes, plan.l1Cluster * blockBytes + table * 8);
  }
  let position = -1;
  let table = -1;
  for (const [entry, block] of index.blocks.entries()) {
    const wanted = Math.floor(block / entriesPerTable);
    // both ascend, so each new table is the next one
    if (wanted !== table) position++;
    table = wanted;
    const at = (plan.l2Cluster + position) * blockBytes + (block % entriesPerTable) * 8;
    const stored = index.stored[entry] ?? zeroBlock;
    if (stored === zeroBlock) {
      writeNumber(metadata, zeroCluster, at);
    } else {
      const slot = slotOf[stored] ?? noSlot;
      const write = references[slot] === 1 ? writeCopied : writeNumber;
      write(metadata, (plan.dataCluster + slot) * blockBytes, at);
    }
  }
}

function writeRefcounts(metadata: Buffer, plan: Plan, references: Uint32Array): void {
  for (let block = 0; block < plan.refcountBlocks; block++) {
    writeNumber(metadata, (plan.refcountBlockCluster + block) * blockBytes, plan.refcountTableCluster * blockBytes + block * 8);
  }
  const start = plan.refcountBlockCluster * blockBytes;
  for (let cluster = 0; cluster < plan.dataCluster; cluster++) metadata.writeUInt32BE(1, start + cluster * 4);
  for (const [slot, count] of references.entries()) metadata.writeUInt32BE(count, start + (plan.dataCluster + slot) * 4);
}

function writeNumber(buffer: Buffer, value: number, offset: number): void {
  buffer.writeUInt32BE(Math.floor(value / 2 ** 32), offset);
  buffer.writeUInt32BE(value % 2 ** 32, offset + 4);
}

function writeCopied(buffer: Buffer, value: number, offset: number): void {
  writeNumber(buffer, value, offset);
  buffer.writeUInt8(buffer.readUInt8(offset) | copied, offset);
}
