import { CloudletError, describeError } from "../../core/errors.ts";
import { PartialFailure } from "../../core/reconcile.ts";

/** What ends operations early: the engine's Cancel, and each resource's own `customTimeouts`, which only the provider can keep. */
export class Interruption {
  #cancelled = new AbortController();

  cancel(): void {
    this.#cancelled.abort(new CloudletError("ABORTED", "the run was cancelled"));
  }

  /** At the end of each run the engine cancels too, and a provider that it did not start itself serves the next one. */
  reset(): void {
    if (this.#cancelled.signal.aborted) this.#cancelled = new AbortController();
  }

  /** Runs one operation; 0 seconds means no limit of its own. */
  async limit<T>({ what, seconds }: { what: string; seconds: number }, operation: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (seconds === 0) return operation(this.#cancelled.signal);
    const timeout = new CloudletError("TIMEOUT", `${what} took longer than the ${seconds} s that its customTimeouts allow`, {
      fix: "run the same command again to continue, or allow more",
    });
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(timeout), seconds * 1000);
    try {
      return await operation(AbortSignal.any([this.#cancelled.signal, late.signal]));
    } catch (error) {
      if (!late.signal.aborted) throw error;
      if (error instanceof PartialFailure) throw new PartialFailure(error, [describeError(timeout), ...error.reasons], error);
      throw timeout;
    } finally {
      clearTimeout(timer);
    }
  }
}
