import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import { request as httpRequest, type HttpRequest, type HttpResponse } from "../http.ts";
import type { Credentials } from "./credentials.ts";

export interface RegistryRequest extends Omit<HttpRequest, "body" | "signal"> {
  /** Path at the registry, or where the registry itself has sent us. */
  url: string | URL;
  /** Made anew where a request must be sent again. */
  body?: () => NonNullable<HttpRequest["body"]>;
  /** In place of the registry's own. */
  signal?: AbortSignal;
}

export interface RegistrySettings {
  credentials(): Promise<Credentials | undefined>;
  signal: AbortSignal;
  /** How long the registry may be silent, in milliseconds. */
  silenceMillis?: number | undefined;
}

const tokenSchema = z.union([
  z.object({ token: z.string().min(1) }).transform(({ token }) => token),
  z.object({ access_token: z.string().min(1) }).transform(({ access_token: token }) => token),
]);
const errorsSchema = z.object({ errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })) });

const answerLimit = 64 * 1024;

/** HTTP to one registry, with the authorization that it asks for. */
export class RegistryHttp {
  readonly origin: URL;
  readonly #settings: RegistrySettings;
  // reading and writing are authorised apart, and who may write may read
  readonly #authorization = new Map<"read" | "write", string>();

  constructor(origin: string, settings: RegistrySettings) {
    this.origin = new URL(origin);
    this.#settings = settings;
  }

  /** Any status but 401 and 403 is a result; the caller reads or discards the body. */
  async send(request: RegistryRequest): Promise<HttpResponse> {
    const right = request.method === undefined || request.method === "GET" || request.method === "HEAD" ? "read" : "write";
    const first = await this.#once(request, right);
    if (first.status !== 401) return this.#allowed(first);
    first.discard();
    this.#authorization.set(right, await this.#authorize(first.headers.get("www-authenticate") ?? ""));
    return this.#allowed(await this.#once(request, right));
  }

  async failure(response: HttpResponse, what: string): Promise<CloudletError> {
    const text = await shortText(response);
    const words = errorWords(text) || text.slice(0, 300) || "no words";
    const fixes = {
      NOT_FOUND: "check the name and the tag",
      UNAUTHORIZED: `run \`docker login ${this.origin.host}\``,
      BUSY: `wait, or run \`docker login ${this.origin.host}\` for a higher limit`,
      INTEGRITY: "the source of the bytes changed meanwhile: run the same command again",
      UNREACHABLE: "look at the registry, then run the same command again",
      FAILED: "read its answer",
    };
    const code = words.includes("DIGEST_INVALID") ? "INTEGRITY" : codeOfStatus(response.status);
    return new CloudletError(code, `${this.origin.host} answered ${String(response.status)} to ${what}: ${words}`, { fix: fixes[code] });
  }

  async #allowed(response: HttpResponse): Promise<HttpResponse> {
    if (response.status === 401 || response.status === 403) throw await this.failure(response, "the request");
    return response;
  }

  #once({ url, headers, body, ...request }: RegistryRequest, right: "read" | "write"): Promise<HttpResponse> {
    const target = new URL(url, this.origin);
    const known = this.#authorization.get(right) ?? this.#authorization.get("write");
    const authorization = target.origin === this.origin.origin ? known : undefined;
    const { signal, silenceMillis } = this.#settings;
    return httpRequest(target, {
      silenceMillis,
      signal,
      ...request,
      headers: { ...headers, ...(authorization && { authorization }) },
      ...(body && { body: body() }),
    });
  }

  /** The words of `WWW-Authenticate`: a token from the place that it names, or the password itself. */
  async #authorize(challenge: string): Promise<string> {
    const credentials = await this.#settings.credentials();
    const basic = credentials && `Basic ${Buffer.from(`${credentials.user}:${credentials.password}`).toString("base64")}`;
    if (!/^bearer /i.test(challenge)) {
      if (basic) return basic;
      throw new CloudletError("UNAUTHORIZED", `${this.origin.host} asks for a password`, {
        fix: `run \`docker login ${this.origin.host}\``,
      });
    }
    const words = Object.fromEntries([...challenge.matchAll(/(\w+)="([^"]*)"/g)].map(([, name = "", value = ""]) => [name, value]));
    const realm = new URL(words["realm"] ?? "", this.origin);
    if (realm.protocol !== "https:" && realm.protocol !== this.origin.protocol)
      throw new CloudletError("REFUSED", `${this.origin.host} would have its password sent in plain text to ${realm.host}`);
    for (const name of ["service", "scope"]) if (words[name]) realm.searchParams.set(name, words[name]);
    const { signal, silenceMillis } = this.#settings;
    const response = await httpRequest(realm, { headers: basic ? { authorization: basic } : {}, signal, silenceMillis });
    if (response.status !== 200) throw await this.failure(response, "the request for a token");
    return `Bearer ${tokenSchema.parse(JSON.parse(await shortText(response)))}`;
  }
}

function codeOfStatus(status: number): "NOT_FOUND" | "UNAUTHORIZED" | "BUSY" | "UNREACHABLE" | "FAILED" {
  if (status === 404) return "NOT_FOUND";
  if (status === 401 || status === 403) return "UNAUTHORIZED";
  if (status === 429) return "BUSY";
  return status >= 500 ? "UNREACHABLE" : "FAILED";
}

async function shortText(response: HttpResponse): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response.body) {
    chunks.push(chunk);
    bytes += chunk.length;
    if (bytes > answerLimit) break;
  }
  return Buffer.concat(chunks).toString("utf8");
}

function errorWords(text: string): string {
  try {
    const { errors } = errorsSchema.parse(JSON.parse(text));
    return errors.map(({ code, message }) => [code, message].filter((word) => word !== undefined).join(": ")).join("; ");
  } catch {
    return "";
  }
}
