import { CloudletError } from "../core/errors.ts";
import type { Progress, Sealed, SealInput } from "./sealTypes.ts";

/** Finds what differs from below, leaves out what is there twice, and writes manifest, index and pack into `input.directory`. */
export async function seal(input: SealInput, progress: Progress): Promise<Sealed> {
  progress.signal.throwIfAborted();
  return Promise.reject(new CloudletError("BUG", `nothing can be sealed in ${input.directory} yet`));
}
