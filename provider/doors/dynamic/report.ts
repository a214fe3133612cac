import { createRequire } from "node:module";
import { join } from "node:path";
import { consoleLog, engineAddress, engineLog, reporter, type EngineLog, type EngineStubs, type Reporter } from "../engineLog.ts";

/** Status lines and warnings by the engine's own log. The dynamic provider learns no URN, so the text names the resource. */
export function reportToEngine(subject: string): Reporter {
  return reporter(
    () => (log ??= connect()),
    (text) => ({ text: `${subject}: ${text}` }),
  );
}

let log: EngineLog | undefined;

function connect(): EngineLog {
  const address = engineAddress();
  if (address === undefined) return consoleLog;
  // grpc is pulumi's dependency, not ours: under pnpm it is visible from there only
  const pulumi = createRequire(createRequire(join(import.meta.dirname, "x")).resolve("@pulumi/pulumi"));
  return engineLog(address, {
    grpc: pulumi("@grpc/grpc-js") as EngineStubs["grpc"],
    services: pulumi("@pulumi/pulumi/proto/engine_grpc_pb.js") as EngineStubs["services"],
    messages: pulumi("@pulumi/pulumi/proto/engine_pb.js") as EngineStubs["messages"],
  });
}
