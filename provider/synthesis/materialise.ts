import { type FileHandle, open, rm, stat } from "node:fs/promises";
import { CloudletError } from "../core/errors.ts";
import { type ArrivingOptions, ArrivingLayer } from "./arrivingLayer.ts";
import type { Progress } from "./sealTypes.ts";

// in flight at a time: enough to keep two processes busy
const windowBytes = 16 * 1024 * 1024;

/** Makes a layer from an overlay whose pack is here; a damaged one leaves nothing behind. Run again, it goes on. */
export async function materialise(options: ArrivingOptions & { pack: string }, progress: Progress): Promise<void> {
  progress.signal.throwIfAborted();
  try {
    const layer = await ArrivingLayer.open(options);
    try {
      await fill(layer, options.pack, progress);
      await layer.complete();
    } finally {
      await layer.close();
    }
  } catch (error) {
    // what arrived before a cancellation is good; what came with a damaged overlay is not
    if (error instanceof CloudletError && (error.code === "INTEGRITY" || error.code === "INVALID")) {
      await rm(options.directory, { recursive: true, force: true });
    }
    throw error;
  }
}

async function fill(layer: ArrivingLayer, pack: string, progress: Progress): Promise<void> {
  const { chunks, bytes } = layer.overlay.manifest.pack;
  const { size } = await stat(pack);
  if (size !== bytes)
    throw new CloudletError("INTEGRITY", `the overlay's pack has ${String(size)} bytes where ${String(bytes)} are expected`);
  const handle = await open(pack, "r");
  const running = new Set<Promise<void>>();
  const failures: unknown[] = [];
  let inFlight = 0;
  for (const position of layer.missing()) {
    const chunk = chunks[position] ?? { offset: 0, bytes: 0, rawBytes: 0 };
    while (running.size > 0 && inFlight + chunk.rawBytes > windowBytes) await Promise.race(running);
    if (failures.length > 0 || progress.signal.aborted) break;
    inFlight += chunk.rawBytes;
    const work = readExactly(handle, chunk)
      .then((compressed) => layer.accept(position, compressed))
      .catch((error: unknown) => void failures.push(error))
      .finally(() => {
        inFlight -= chunk.rawBytes;
        running.delete(work);
      });
    running.add(work);
  }
  await Promise.all(running);
  await handle.close();
  progress.signal.throwIfAborted();
  if (failures.length > 0) throw failures[0];
}

async function readExactly(handle: FileHandle, { offset, bytes }: { offset: number; bytes: number }): Promise<Buffer> {
  const { buffer, bytesRead } = await handle.read(Buffer.alloc(bytes), 0, bytes, offset);
  return buffer.subarray(0, bytesRead);
}
