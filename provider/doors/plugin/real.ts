import { functions, resources } from "../../index.ts";
import { digests } from "../../local/files.ts";
import type { Runtime } from "../../runtime.ts";
import { parseSettings, readSettings } from "../../settings.ts";
import type { Reporter } from "../engineLog.ts";
import { Operations } from "./operations.ts";

/** The door with every resource and the real world behind it. */
export function realOperations(report: (urn: string) => Reporter): Operations {
  return new Operations({
    definitions: resources,
    functions,
    digests,
    report,
    // it comes as one text
    secretSettings: [["connection"]],
    checkSettings: (given) => parseSettings(given).issues,
    world(given) {
      const settings = readSettings(given);
      let runtime: Promise<Runtime> | undefined;
      return () => (runtime ??= import("../../runtime.ts").then(({ createRuntime }) => createRuntime(settings)));
    },
  });
}
