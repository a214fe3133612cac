import type * as Grpc from "@grpc/grpc-js";
import type * as Services from "@pulumi/pulumi/proto/engine_grpc_pb.js";
import type * as Messages from "@pulumi/pulumi/proto/engine_pb.js";

export interface Reporter {
  status(text: string): void;
  warn(text: string): void;
  /** Kept among the diagnostics, for reviewers. */
  note(text: string): void;
}

export interface LogLine {
  severity: "INFO" | "WARNING";
  text: string;
  /** Shown while it is news, and kept nowhere. */
  ephemeral: boolean;
  /** The resource it belongs to; without one it lands on the stack. */
  urn?: string;
}

export interface EngineLog {
  log(line: LogLine): void;
}

/** What a door finds in its own way: the dynamic one in Pulumi's package, the plugin within itself. */
export interface EngineStubs {
  grpc: typeof Grpc;
  services: Pick<typeof Services, "EngineClient">;
  messages: Pick<typeof Messages, "LogRequest" | "LogSeverity">;
}

/** The log of the engine at this address. */
export function engineLog(address: string, { grpc, services, messages }: EngineStubs): EngineLog {
  const client = new services.EngineClient(address, grpc.credentials.createInsecure());
  return {
    log({ severity, text, ephemeral, urn }) {
      const request = new messages.LogRequest();
      request.setSeverity(messages.LogSeverity[severity]);
      request.setMessage(text);
      request.setEphemeral(ephemeral);
      if (urn !== undefined) request.setUrn(urn);
      // a lost status line is no reason to fail
      client.log(request, () => undefined);
    },
  };
}

/** Where no engine listens. */
export const consoleLog: EngineLog = { log: ({ text }) => console.error(text) };

/** The engine starts a provider with its own address as the first argument. */
export function engineAddress(): string | undefined {
  const address = process.argv[2];
  return address !== undefined && /^[\w.-]+:\d+$/.test(address) ? address : undefined;
}

/** Status lines and warnings of one operation. */
export function reporter(log: () => EngineLog, about: (text: string) => Pick<LogLine, "text" | "urn">): Reporter {
  return {
    status: (text) => log().log({ severity: "INFO", ephemeral: true, ...about(text) }),
    warn: (text) => log().log({ severity: "WARNING", ephemeral: false, ...about(text) }),
    note: (text) => log().log({ severity: "INFO", ephemeral: false, ...about(text) }),
  };
}
