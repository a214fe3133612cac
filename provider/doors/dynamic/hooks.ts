import { cloudletFunctions } from "../../functions/cloudletFunctions.ts";
import type { Context } from "../../core/context.ts";
import { CloudletError, describeError } from "../../core/errors.ts";
import { invoke } from "../../core/invoke.ts";
import { functions as everyFunction, resources } from "../../index.ts";
import { openContext, run } from "../../runtime.ts";
import { reportToEngine } from "./report.ts";
import { dynamicHooks } from "./translate.ts";

/** The hooks of one resource type. The constant provider objects load them at run time, so that fixes reach the state of older programs. */
export const hooksOf = dynamicHooks({
  definitions: resources,
  ...run,
  open: (subject) => openContext(reportToEngine(subject)),
  note: (subject, text) => reportToEngine(subject).note(text),
});

/** What every door has, run in the program's own process. */
export async function ask(token: string, given: Record<string, unknown>): Promise<Record<string, unknown>> {
  const definition = everyFunction.find((one) => one.token === token);
  if (!definition) throw new CloudletError("BUG", `this version of pulumi-cloudlet has no ${token}`);
  try {
    const answer = await invoke(definition, { given, preview: false }, openHere);
    if ("result" in answer) return answer.result;
    throw new CloudletError("INVALID", answer.issues.map(({ path, message }) => `${path}: ${message}`).join("; "));
  } catch (error) {
    throw new Error(describeError(error), { cause: error });
  }
}

/** The SDK's functions, run in the program's own process. */
export const functions = cloudletFunctions(openHere);

function openHere(): Context {
  return openContext({ status: () => undefined, warn: (text) => console.warn(text) });
}
