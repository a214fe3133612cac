import type { Context } from "./core/context.ts";
import { Declarations } from "./core/declarations.ts";
import { CloudletError } from "./core/errors.ts";
import { digests, local } from "./local/files.ts";

/** What all operations of one run of the engine share. */
export const run = { declarations: new Declarations(), digests };

/** No operation lasts longer, so that nothing hangs for ever. */
const operationMillis = 60 * 60_000;

/** The real world for one operation; `report` says where status lines and warnings go. */
export function openContext(report: Pick<Context, "status" | "warn">): Context {
  const signal = deadline();
  return {
    signal,
    ...report,
    local,
    host: notWired,
    agent: notWired,
    lxd: notWired,
    commission: { apply: notWired, observe: notWired, remove: notWired },
  };
}

// AbortSignal.timeout does not keep the process alive
function deadline(): AbortSignal {
  return AbortSignal.timeout(operationMillis);
}

function notWired(): Promise<never> {
  return Promise.reject(new CloudletError("BUG", "this build reaches no nodes"));
}
