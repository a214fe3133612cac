import type { Context } from "../../core/context.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Inputs } from "./fields.ts";
import { idOf } from "./spec.ts";

/** Brings to the node what it needs from the operator's machine and does not have. */
export async function supply(want: Inputs, context: Context): Promise<void> {
  const agent = await context.agent(want.connection);
  const wanted = [
    { what: "base", digest: want.base.digest, open: () => context.local.open(want.base.file) },
    ...(want.build
      ? [{ what: "build", digest: want.build.digest, open: () => context.local.openDirectory(want.build?.context ?? "") }]
      : []),
  ];
  for (const { what, digest, open } of wanted) {
    if (digest === undefined || (await agent.hasBlob(digest))) continue;
    const blob = await open();
    if (blob.digest !== digest) {
      throw new CloudletError("INTEGRITY", `the ${what} of cloudlet "${idOf(want)}" changed while the program ran`, {
        fix: "run the same command again",
      });
    }
    context.status(`sending the ${what} (${(blob.bytes / 1e6).toFixed(1)} MB) to ${agent.label}`);
    await agent.putBlob(blob, { signal: context.signal });
  }
}
