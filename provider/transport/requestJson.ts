import { text } from "node:stream/consumers";
import type { z } from "zod";
import { CloudletError } from "../core/errors.ts";
import type { Rest, RestRequest } from "./types.ts";

export interface JsonAnswer<T> {
  status: number;
  value: T;
}

/** Sends a request and reads a JSON answer. The schema must allow for every status that the caller wants to tell apart. */
export async function requestJson<Schema extends z.ZodType>(
  rest: Rest,
  schema: Schema,
  request: RestRequest,
): Promise<JsonAnswer<z.infer<Schema>>> {
  const { status, body } = await rest.request(request);
  const where = `${rest.label} to ${request.method} ${request.path.replace(/\?.*$/, "")}`;
  const received = await text(body);
  const parsed = schema.safeParse(parseJson(received));
  if (parsed.success) return { status, value: parsed.data };
  const reason = parsed.error.issues.slice(0, 3).map((issue) => `${issue.path.join(".") || "answer"}: ${issue.message}`);
  throw new CloudletError("UNSUPPORTED", `the answer of ${where} (status ${String(status)}) is not understood: ${reason.join("; ")}`, {
    fix: "bring the node and this provider to the same version (`pulumi up`), and report it if that does not help",
  });
}

/** undefined where it is no JSON; the schema then says what it wanted. */
function parseJson(received: string): unknown {
  try {
    return JSON.parse(received) as unknown;
  } catch {
    return undefined;
  }
}
