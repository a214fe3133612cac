import { type BlockSource, readBlocks } from "./blockReader.ts";
import { blockBytes } from "./manifest.ts";

const batchBlocks = 1024;
/** Sum of the squares of how often each byte occurs: 69,600 on average where all are equally likely, 16.8 million where all are the same. */
const evenSquares = 80_000;

/** Marks the blocks whose bytes are spread so evenly (encrypted, compressed, media) that no compressor gains anything. */
export async function findDense(source: BlockSource, count: number, signal: AbortSignal): Promise<Uint8Array> {
  const dense = new Uint8Array(count);
  for (let from = 0; from < count; from += batchBlocks) {
    signal.throwIfAborted();
    const to = Math.min(from + batchBlocks, count);
    const bytes = await readBlocks(
      source,
      Uint32Array.from({ length: to - from }, (_, position) => from + position),
    );
    for (let block = from; block < to; block++) {
      const at = (block - from) * blockBytes;
      if (isEven(bytes.subarray(at, at + blockBytes))) dense[block] = 1;
    }
  }
  return dense;
}

const counts = new Uint32Array(256);

function isEven(block: Buffer): boolean {
  counts.fill(0);
  for (const byte of block) counts[byte] = (counts[byte] ?? 0) + 1;
  let squares = 0;
  for (const count of counts) squares += count * count;
  return squares < evenSquares;
}
