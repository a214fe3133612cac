import { CloudletError } from "../core/errors.ts";
import { type ArrivingOptions, ArrivingLayer } from "./arrivingLayer.ts";
import type { Progress } from "./sealTypes.ts";

/** Makes a layer from an overlay whose pack is here; a damaged one leaves nothing behind. Run again, it goes on. */
export async function materialise(options: ArrivingOptions & { pack: string }, progress: Progress): Promise<void> {
  progress.signal.throwIfAborted();
  const layer = await ArrivingLayer.open(options);
  await layer.close();
  throw new CloudletError("BUG", `no layer can be made from ${options.pack} yet`);
}
