import { resources } from "../../index.ts";
import { openContext, run } from "../../runtime.ts";
import type { Reporter } from "../engineLog.ts";
import { Operations } from "./operations.ts";

/** The door with every resource and the real world behind it. */
export function realOperations(report: (urn: string) => Reporter): Operations {
  return new Operations({ definitions: resources, digests: run.digests, open: openContext, report });
}
