import { fstatSync } from "node:fs";
import { engineAddress, type Reporter } from "../engineLog.ts";
import { ServedEngine } from "./log.ts";
import type { Operations } from "./operations.ts";
import { serve } from "./server.ts";

export interface Plugin {
  version: string;
  schema(): Promise<string>;
  /** Loaded once the port is told, while the engine connects. */
  operations(report: (urn: string) => Reporter): Promise<Operations>;
}

/** What a process must do that Pulumi's engine starts, or attaches to. */
export function runPlugin({ version, schema, operations: load }: Plugin): void {
  const engine = new ServedEngine();
  const address = engineAddress();
  if (address !== undefined) {
    engine.at(address);
    // an engine that was killed sends nothing, but its end of this pipe closes; a language host that starts this gives none
    const input = fstatSync(process.stdin.fd);
    if (input.isFIFO() || input.isSocket()) process.stdin.resume().on("end", () => process.exit(0));
  }
  // the engine sends SIGINT when it is done, and calls a provider that is slow to go a bug
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(0));

  let loading: Promise<Operations> | undefined;
  const operations = (): Promise<Operations> => (loading ??= load((urn) => engine.report(urn)));
  serve({
    version,
    schema,
    operations,
    attach: (to) => engine.at(to),
  }).then(
    // the first line is what the engine waits for
    ({ port }) => {
      console.log(port);
      // the first call waits the less for it; what fails is told by that call
      setImmediate(() => operations().catch(() => undefined));
    },
    (error: unknown) => {
      console.error(error);
      process.exit(1);
    },
  );
}
