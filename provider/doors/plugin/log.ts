import * as grpc from "@grpc/grpc-js";
import services from "@pulumi/pulumi/proto/engine_grpc_pb.js";
import messages from "@pulumi/pulumi/proto/engine_pb.js";
import { consoleLog, engineLog, reporter, type EngineLog, type Reporter } from "../engineLog.ts";

/** The log of the engine that this plugin serves at the moment. */
export class ServedEngine {
  #log: EngineLog = consoleLog;

  at(address: string): void {
    this.#log = engineLog(address, { grpc, services, messages });
  }

  report(urn: string): Reporter {
    return reporter(
      () => this.#log,
      (text) => ({ text, urn }),
    );
  }
}
