import { cloudletFunctions } from "../../functions/cloudletFunctions.ts";
import { resources } from "../../index.ts";
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

/** The SDK's functions, run in the program's own process. */
export const functions = cloudletFunctions(() => openContext({ status: () => undefined, warn: (text) => console.warn(text) }));
