import { Metadata, status, type ServiceError } from "@grpc/grpc-js";
import providerPb from "@pulumi/pulumi/proto/provider_pb.js";
import statusPb from "@pulumi/pulumi/proto/status_pb.js";
import type { Struct } from "google-protobuf/google/protobuf/struct_pb.js";
import anyPb from "google-protobuf/google/protobuf/any_pb.js";
import { describeError } from "../../core/errors.ts";

/** Something exists although the operation failed: the engine keeps this state, and the next run goes on there. */
export class KeptFailure extends Error {
  readonly kept: { id: string; properties: Struct; inputs: Struct; reasons: string[] };

  constructor(kept: KeptFailure["kept"]) {
    super(kept.reasons.join("\n"));
    this.kept = kept;
  }
}

/** How gRPC carries an error, with what is kept as a detail of its status. */
export function toServiceError(error: unknown): ServiceError {
  const kept = error instanceof KeptFailure;
  const details = kept ? error.message : describeError(error);
  const metadata = new Metadata();
  if (kept) metadata.add("grpc-status-details-bin", Buffer.from(statusOf(error).serializeBinary()));
  // the stack is nobody's business outside
  return Object.assign(new Error(details), { code: status.UNKNOWN, details, metadata, stack: "" });
}

function statusOf({ kept, message }: KeptFailure): InstanceType<typeof statusPb.Status> {
  const detail = new providerPb.ErrorResourceInitFailed();
  detail.setId(kept.id);
  detail.setProperties(kept.properties);
  detail.setInputs(kept.inputs);
  detail.setReasonsList(kept.reasons);
  const packed = new anyPb.Any();
  packed.pack(detail.serializeBinary(), "pulumirpc.ErrorResourceInitFailed");
  const carried = new statusPb.Status();
  carried.setCode(status.UNKNOWN);
  carried.setMessage(message);
  carried.addDetails(packed);
  return carried;
}
