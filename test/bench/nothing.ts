// A fake provider that does nothing: what a preview or an update costs before any provider has worked. It keeps what the engine
// sends as it came, and every resource is as it was.
import { Server, ServerCredentials, type handleUnaryCall } from "@grpc/grpc-js";
import pluginPb from "@pulumi/pulumi/proto/plugin_pb.js";
import services from "@pulumi/pulumi/proto/provider_grpc_pb.js";
import providerPb from "@pulumi/pulumi/proto/provider_pb.js";
import type { CheckRequest, CheckResponse, CreateRequest, CreateResponse, DiffResponse } from "@pulumi/pulumi/proto/provider_pb.js";
import emptyPb from "google-protobuf/google/protobuf/empty_pb.js";
import structPb from "google-protobuf/google/protobuf/struct_pb.js";

const server = new Server({ "grpc.max_receive_message_length": -1, "grpc.max_send_message_length": -1 });
server.addService(services.ResourceProviderService, {
  handshake: answer(() =>
    new providerPb.ProviderHandshakeResponse().setAcceptSecrets(true).setAcceptResources(true).setAcceptOutputs(true),
  ),
  getPluginInfo: answer(() => new pluginPb.PluginInfo().setVersion("0.0.0")),
  checkConfig: answer(kept),
  diffConfig: answer(unchanged),
  configure: answer(() =>
    new providerPb.ConfigureResponse().setAcceptsecrets(true).setAcceptresources(true).setAcceptoutputs(true).setSupportspreview(true),
  ),
  check: answer(kept),
  diff: answer(unchanged),
  create: answer((request: CreateRequest): CreateResponse =>
    new providerPb.CreateResponse().setId(request.getName()).setProperties(request.getProperties()),
  ),
  cancel: answer(() => new emptyPb.Empty()),
});
process.stdin.resume().on("end", () => process.exit(0));
for (const signal of ["SIGINT", "SIGTERM"] as const) process.on(signal, () => process.exit(0));
server.bindAsync("127.0.0.1:0", ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(port);
});

/** The inputs of before, where there are any: they have what another provider has filled in. */
function kept(request: CheckRequest): CheckResponse {
  const olds = request.getOlds();
  const before = olds !== undefined && olds.getFieldsMap().getLength() > 0 ? olds : undefined;
  return new providerPb.CheckResponse().setInputs(before ?? request.getNews() ?? new structPb.Struct());
}

function unchanged(): DiffResponse {
  return new providerPb.DiffResponse().setChanges(providerPb.DiffResponse.DiffChanges.DIFF_NONE);
}

function answer<Request, Response>(make: (request: Request) => Response): handleUnaryCall<Request, Response> {
  return ({ request }, callback) => callback(null, make(request));
}
