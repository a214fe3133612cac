import { fork } from "node:child_process";
import { once } from "node:events";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { z } from "zod";
import { CloudletError, errorCodes, type ErrorCode } from "../core/errors.ts";

export const flattenSchema = z.object({
  /** Layers of a container image, the lowest first. */
  layers: z.array(z.object({ name: z.string(), path: z.string() })),
  /** Where the tar of the root file system is written. */
  target: z.string(),
});
export type Flattening = z.infer<typeof flattenSchema>;

const codes = Object.keys(errorCodes) as [ErrorCode, ...ErrorCode[]];

/** What the process says at its end. */
export const flattenedSchema = z.object({ failure: z.object({ code: z.enum(codes), message: z.string(), fix: z.string() }).optional() });

/** Lays the layers of a container image over one another, in a process of its own: beside Pulumi's memory, its own would be too much. */
export async function flatten(work: Flattening, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted();
  // else V8 lets the space of new objects grow by 100 MB while files stream through
  const child = fork(processFile(), { execArgv: ["--max-semi-space-size=8"], stdio: ["ignore", "ignore", "ignore", "ipc"] });
  const ended = once(child, "exit");
  const cancel = (): void => void child.kill("SIGKILL");
  signal.addEventListener("abort", cancel, { once: true });
  try {
    const said = await new Promise<unknown>((resolve, reject) => {
      child.once("message", resolve);
      child.once("error", reject);
      child.once("exit", (code, name) =>
        reject(new CloudletError("FAILED", `the process that writes ${work.target} ended with ${name ?? String(code)}`)),
      );
      child.send(work);
    });
    const { failure } = flattenedSchema.parse(said);
    if (failure !== undefined) throw new CloudletError(failure.code, failure.message, { fix: failure.fix });
  } catch (error) {
    signal.throwIfAborted();
    throw error;
  } finally {
    signal.removeEventListener("abort", cancel);
    child.kill("SIGKILL");
    await ended;
  }
}

/** Beside this file, as built or as written. */
function processFile(): string {
  const built = join(import.meta.dirname, "flattenProcess.js");
  return existsSync(built) ? built : join(import.meta.dirname, "flattenProcess.ts");
}
