import type { FileHandle } from "node:fs/promises";
import { blockBytes } from "./manifest.ts";

/** Where each of some blocks, numbered from 0, can be read. */
export interface BlockSource {
  handles: FileHandle[];
  /** For each block, a position in `handles`. */
  sources: Uint8Array;
  /** For each block, where it begins in its file, in blocks. */
  blocks: Uint32Array;
}

interface Span {
  source: number;
  start: number;
  end: number;
  /** Position in the answer, and block of the file. */
  wanted: [number, number][];
}

// it takes less time to read over a small gap than to ask again
const maxGap = 8;
const maxSpan = 256;

/** The blocks of these numbers, one after the other. */
export async function readBlocks({ handles, sources, blocks }: BlockSource, numbers: Uint32Array): Promise<Buffer> {
  const answer = Buffer.allocUnsafe(numbers.length * blockBytes);
  const spans: Span[] = [];
  for (const [position, number] of numbers.entries()) {
    const source = sources[number] ?? 0;
    const block = blocks[number] ?? 0;
    const last = spans.at(-1);
    if (last?.source === source && block >= last.end && block - last.end <= maxGap && block - last.start < maxSpan) {
      last.end = block + 1;
      last.wanted.push([position, block]);
    } else {
      spans.push({ source, start: block, end: block + 1, wanted: [[position, block]] });
    }
  }
  await Promise.all(spans.map(async (span) => copySpan(handles[span.source], span, answer)));
  return answer;
}

async function copySpan(handle: FileHandle | undefined, span: Span, answer: Buffer): Promise<void> {
  const bytes = (span.end - span.start) * blockBytes;
  const [first] = span.wanted[0] ?? [0];
  // without gaps, it goes straight to where it belongs
  const isDense = span.wanted.length * blockBytes === bytes;
  const buffer = isDense ? answer.subarray(first * blockBytes, first * blockBytes + bytes) : Buffer.allocUnsafe(bytes);
  const { bytesRead = 0 } = (await handle?.read(buffer, 0, bytes, span.start * blockBytes)) ?? {};
  // beyond the end of an image there are zeros
  buffer.fill(0, bytesRead);
  if (isDense) return;
  for (const [position, block] of span.wanted) {
    const at = (block - span.start) * blockBytes;
    buffer.copy(answer, position * blockBytes, at, at + blockBytes);
  }
}
