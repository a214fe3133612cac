import { json, text } from "node:stream/consumers";
import { z } from "zod";
import { CloudletError, type ErrorCode } from "../../core/errors.ts";
import type { Rest, RestRequest, RestResponse } from "../../transport/types.ts";

/** One request, with what it is for: `start demo-1a2b3c4d`. */
export interface LxdRequest extends RestRequest {
  what: string;
}

const envelopeSchema = z.discriminatedUnion("type", [
  z.object({ type: z.literal("sync"), metadata: z.unknown() }),
  z.object({ type: z.literal("async"), operation: z.string() }),
  z.object({ type: z.literal("error"), error: z.string(), error_code: z.int() }),
]);
export type Envelope = Exclude<z.infer<typeof envelopeSchema>, { type: "error" }>;

export const instanceSchema = z.object({
  name: z.string(),
  status: z.string(),
  architecture: z.string(),
  config: z.record(z.string(), z.string()),
  devices: z.record(z.string(), z.record(z.string(), z.string())),
});
export type LxdInstance = z.infer<typeof instanceSchema>;

/** Sends a request and checks the frame of the answer; LXD's refusals become errors in its own words. */
export async function send(rest: Rest, request: LxdRequest): Promise<Envelope> {
  const response = await reach(rest, request);
  const envelope = envelopeSchema.safeParse(await json(response.body).catch(() => undefined));
  if (!envelope.success)
    throw new CloudletError("FAILED", `${rest.label}: cannot ${request.what}: the answer is not LXD's (HTTP ${String(response.status)})`);
  if (envelope.data.type === "error") throw refusal(rest, request.what, envelope.data);
  return envelope.data;
}

/** Asks for something that is there at once. */
export async function ask<S extends z.ZodType>(rest: Rest, request: LxdRequest, schema: S): Promise<z.infer<S>> {
  const envelope = await send(rest, request);
  const parsed = schema.safeParse(envelope.type === "sync" ? envelope.metadata : undefined);
  if (parsed.success) return parsed.data;
  throw new CloudletError("FAILED", `${rest.label}: cannot ${request.what}: unexpected answer: ${z.prettifyError(parsed.error)}`);
}

/** undefined = LXD answered that it is not there. */
export async function find<S extends z.ZodType>(rest: Rest, request: LxdRequest, schema: S): Promise<z.infer<S> | undefined> {
  try {
    return await ask(rest, request, schema);
  } catch (error) {
    if (error instanceof CloudletError && error.code === "NOT_FOUND") return undefined;
    throw error;
  }
}

export function findInstance(rest: Rest, name: string, signal?: AbortSignal): Promise<LxdInstance | undefined> {
  return find(rest, { method: "GET", path: `/1.0/instances/${name}`, what: `look at ${name}`, signal }, instanceSchema);
}

/** An answer that is not in LXD's frame: a file, a log, an export. Refusals still become errors. */
export async function download(rest: Rest, request: LxdRequest): Promise<RestResponse> {
  const response = await reach(rest, request);
  if (response.status < 400) return response;
  const body = await text(response.body);
  throw refusal(rest, request.what, { error: errorText(body), error_code: response.status });
}

async function reach(rest: Rest, request: LxdRequest): Promise<RestResponse> {
  try {
    return await rest.request(request);
  } catch (error) {
    // a daemon that accepts and never answers is as silent as one that is gone
    if (error instanceof CloudletError && error.code === "TIMEOUT") {
      throw new CloudletError("UNREACHABLE", `${rest.label} is silent: cannot ${request.what}: ${error.message}`, {
        cause: error,
        fix: "look at the LXD daemon on the node, then run the same command again",
      });
    }
    throw error;
  }
}

function errorText(body: string): string {
  try {
    const parsed = z.object({ error: z.string() }).safeParse(JSON.parse(body));
    return parsed.success ? parsed.data.error : body.slice(0, 500);
  } catch {
    return body.slice(0, 500);
  }
}

const codes: Readonly<Record<number, ErrorCode>> = { 401: "UNAUTHORIZED", 403: "UNAUTHORIZED", 404: "NOT_FOUND", 409: "CONFLICT" };

function refusal(rest: Rest, what: string, { error, error_code }: { error: string; error_code: number }): CloudletError {
  return new CloudletError(codes[error_code] ?? "FAILED", `${rest.label}: cannot ${what}: ${error}`);
}
