import { Server, ServerCredentials, status, type handleUnaryCall, type UntypedServiceImplementation } from "@grpc/grpc-js";
import pluginPb from "@pulumi/pulumi/proto/plugin_pb.js";
import type { PluginAttach } from "@pulumi/pulumi/proto/plugin_pb.js";
import services from "@pulumi/pulumi/proto/provider_grpc_pb.js";
import providerPb from "@pulumi/pulumi/proto/provider_pb.js";
import emptyPb from "google-protobuf/google/protobuf/empty_pb.js";
import { toServiceError } from "./failure.ts";
import type { Operations } from "./operations.ts";

export interface Served {
  version: string;
  schema(): Promise<string>;
  /** Loaded at the first call that needs them, so that the port is known early. */
  operations(): Promise<Operations>;
  /** Where the engine's log is; a provider that the engine did not start learns it here. */
  attach(address: string): void;
}

/** Listens on a loopback port that the system chooses. */
export async function serve(served: Served): Promise<{ port: number; close(): void }> {
  // nobody asks for its statistics
  const server = new Server({ "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1, "grpc.enable_channelz": 0 });
  server.addService(services.ResourceProviderService, implementation(served));
  const port = await new Promise<number>((resolve, reject) => {
    server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, bound) => (error ? reject(error) : resolve(bound)));
  });
  return { port, close: () => server.forceShutdown() };
}

function implementation(served: Served): UntypedServiceImplementation {
  const { operations } = served;
  const empty = (): InstanceType<typeof emptyPb.Empty> => new emptyPb.Empty();
  return {
    ...introduction(served),
    checkConfig: unary(async (request: InstanceType<typeof providerPb.CheckRequest>) => (await operations()).checkConfig(request)),
    diffConfig: unary(async (request: InstanceType<typeof providerPb.DiffRequest>) => (await operations()).diffConfig(request)),
    configure: unary(async (request: InstanceType<typeof providerPb.ConfigureRequest>) => (await operations()).configure(request)),
    check: unary(async (request: InstanceType<typeof providerPb.CheckRequest>) => (await operations()).check(request)),
    diff: unary(async (request: InstanceType<typeof providerPb.DiffRequest>) => (await operations()).diff(request)),
    create: unary(async (request: InstanceType<typeof providerPb.CreateRequest>) => (await operations()).create(request)),
    read: unary(async (request: InstanceType<typeof providerPb.ReadRequest>) => (await operations()).read(request)),
    update: unary(async (request: InstanceType<typeof providerPb.UpdateRequest>) => (await operations()).update(request)),
    delete: unary(async (request: InstanceType<typeof providerPb.DeleteRequest>) => {
      await (await operations()).delete(request);
      return empty();
    }),
    invoke: unary(async (request: InstanceType<typeof providerPb.InvokeRequest>) => (await operations()).invoke(request)),
    cancel: unary(async () => {
      (await operations()).cancel();
      return empty();
    }),
    ...absent(["parameterize", "call", "construct", "list"]),
  };
}

/** What is asked before there is any work. */
function introduction({ version, schema, attach }: Served): UntypedServiceImplementation {
  return {
    handshake: unary(() => {
      const response = new providerPb.ProviderHandshakeResponse();
      response.setAcceptSecrets(true);
      response.setAcceptResources(true);
      response.setAcceptOutputs(true);
      response.setSupportsAutonamingConfiguration(true);
      return Promise.resolve(response);
    }),
    attach: unary((request: PluginAttach) => {
      attach(request.getAddress());
      return Promise.resolve(new emptyPb.Empty());
    }),
    getPluginInfo: unary(() => {
      const response = new pluginPb.PluginInfo();
      response.setVersion(version);
      return Promise.resolve(response);
    }),
    getSchema: unary(async () => {
      const response = new providerPb.GetSchemaResponse();
      response.setSchema(await schema());
      return response;
    }),
    getMapping: unary(() => Promise.resolve(new providerPb.GetMappingResponse())),
    getMappings: unary(() => Promise.resolve(new providerPb.GetMappingsResponse())),
  };
}

function unary<Request, Response>(answer: (request: Request) => Promise<Response>): handleUnaryCall<Request, Response> {
  return ({ request }, callback) => {
    answer(request).then(
      (response) => callback(null, response),
      (error: unknown) => callback(toServiceError(error)),
    );
  };
}

function absent(names: string[]): UntypedServiceImplementation {
  const refuse: handleUnaryCall<unknown, unknown> = (_call, callback) =>
    callback({ code: status.UNIMPLEMENTED, details: "pulumi-cloudlet does not have this call" });
  return Object.fromEntries(names.map((name) => [name, refuse]));
}
