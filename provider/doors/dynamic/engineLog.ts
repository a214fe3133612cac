import { createRequire } from "node:module";
import { join } from "node:path";
import type * as Grpc from "@grpc/grpc-js";
import type * as Services from "@pulumi/pulumi/proto/engine_grpc_pb.js";
import type * as Messages from "@pulumi/pulumi/proto/engine_pb.js";

export interface Reporter {
  status(text: string): void;
  warn(text: string): void;
  /** Kept among the diagnostics, for reviewers. */
  note(text: string): void;
}

/** Status lines and warnings by the engine's own log. The dynamic provider learns no URN, so the text names the resource. */
export function reportToEngine(subject: string): Reporter {
  const send = (severity: "INFO" | "WARNING", text: string, ephemeral: boolean): void => {
    engine ??= connect();
    engine.log({ severity, text: `${subject}: ${text}`, ephemeral });
  };
  return {
    status: (text) => send("INFO", text, true),
    warn: (text) => send("WARNING", text, false),
    note: (text) => send("INFO", text, false),
  };
}

interface Engine {
  log(line: { severity: keyof typeof Messages.LogSeverity; text: string; ephemeral: boolean }): void;
}

let engine: Engine | undefined;

// the engine starts the dynamic provider with its own address as the first argument
function connect(): Engine {
  const address = process.argv[2];
  if (address === undefined || !/^[\w.-]+:\d+$/.test(address)) return { log: ({ text }) => console.error(text) };
  // grpc is pulumi's dependency, not ours: under pnpm it is visible from there only
  const pulumi = createRequire(createRequire(join(import.meta.dirname, "x")).resolve("@pulumi/pulumi"));
  const grpc = pulumi("@grpc/grpc-js") as typeof Grpc;
  const { EngineClient } = pulumi("@pulumi/pulumi/proto/engine_grpc_pb.js") as typeof Services;
  const messages = pulumi("@pulumi/pulumi/proto/engine_pb.js") as typeof Messages;
  const client = new EngineClient(address, grpc.credentials.createInsecure());
  return {
    log({ severity, text, ephemeral }) {
      const request = new messages.LogRequest();
      request.setSeverity(messages.LogSeverity[severity]);
      request.setMessage(text);
      request.setEphemeral(ephemeral);
      // a lost status line is no reason to fail
      client.log(request, () => undefined);
    },
  };
}
