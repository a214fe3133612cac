import { resources } from "../../index.ts";
import { openContext, run } from "../../runtime.ts";
import { reportToEngine } from "./engineLog.ts";
import { dynamicHooks } from "./translate.ts";

/** What the resource classes' constant hooks call; found at run time, so that fixes reach the state of older programs. */
export const { check, diff, create, read, update, remove } = dynamicHooks({
  definitions: resources,
  ...run,
  open: (subject) => openContext(reportToEngine(subject)),
});
