import type { Readable } from "node:stream";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Credentials } from "./credentials.ts";

export interface RegistryRequest {
  method: "GET" | "HEAD" | "POST" | "PUT";
  /** Path at the registry, or where the registry itself has sent us. */
  url: string | URL;
  headers?: Record<string, string>;
  body?: Buffer | Readable;
}

const tokenSchema = z.union([
  z.object({ token: z.string().min(1) }).transform(({ token }) => token),
  z.object({ access_token: z.string().min(1) }).transform(({ access_token: token }) => token),
]);
const errorsSchema = z.object({ errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })) });

const answerMillis = 60_000;

/** HTTP to one registry, with the authorization that it asks for. */
export class RegistryHttp {
  readonly origin: URL;
  readonly #credentials: () => Promise<Credentials | undefined>;
  readonly #signal: AbortSignal;
  #authorization: string | undefined;

  constructor(origin: string, { credentials, signal }: { credentials(): Promise<Credentials | undefined>; signal: AbortSignal }) {
    this.origin = new URL(origin);
    this.#credentials = credentials;
    this.#signal = signal;
  }

  /** Any status but 401 and 403 is a result; the caller reads or cancels the body. */
  async send(request: RegistryRequest): Promise<Response> {
    const first = await this.#once(request);
    if (first.status !== 401) return this.#allowed(first);
    await first.body?.cancel();
    this.#authorization = await this.#authorize(first.headers.get("www-authenticate") ?? "");
    // what was streamed once cannot be sent again: uploads begin with a request without a body, which brings the authorization
    if (request.body !== undefined && !Buffer.isBuffer(request.body))
      throw new CloudletError("UNAUTHORIZED", `${this.origin.host} asked for credentials in the middle of an upload`, {
        fix: "run the same command again",
      });
    return this.#allowed(await this.#once(request));
  }

  async failure(response: Response, what: string): Promise<CloudletError> {
    const text = (await response.text().catch(() => "")).slice(0, 2000);
    const words = errorWords(text) || text.slice(0, 300) || response.statusText;
    const code = response.status === 404 ? "NOT_FOUND" : response.status === 401 || response.status === 403 ? "UNAUTHORIZED" : "FAILED";
    const fix = {
      NOT_FOUND: "check the name and the tag",
      UNAUTHORIZED: `run \`docker login ${this.origin.host}\``,
      FAILED: "read its answer",
    };
    return new CloudletError(code, `${this.origin.host} answered ${String(response.status)} to ${what}: ${words}`, { fix: fix[code] });
  }

  async #allowed(response: Response): Promise<Response> {
    if (response.status === 401 || response.status === 403) throw await this.failure(response, "the request");
    return response;
  }

  async #once({ method, url, headers, body }: RegistryRequest): Promise<Response> {
    const target = new URL(url, this.origin);
    const authorization = target.origin === this.origin.origin ? this.#authorization : undefined;
    const streams = body !== undefined && !Buffer.isBuffer(body);
    return this.#fetch(target, {
      method,
      headers: { ...headers, ...(authorization && { authorization }) },
      ...(body !== undefined && { body: Buffer.isBuffer(body) ? new Uint8Array(body) : body }),
      ...(streams && { duplex: "half" }),
      // bodies have no deadline of their own here: fetch ends one that stands still for five minutes
      signal: streams || method === "GET" ? this.#signal : AbortSignal.any([this.#signal, AbortSignal.timeout(answerMillis)]),
    });
  }

  async #fetch(target: URL, init: RequestInit): Promise<Response> {
    try {
      return await fetch(target, init);
    } catch (cause) {
      if (this.#signal.aborted) throw new CloudletError("ABORTED", `the transfer with ${target.host} was cancelled`, { cause });
      throw new CloudletError("UNREACHABLE", `${target.host} did not answer: ${reasonOf(cause)}`, {
        cause,
        fix: "check the registry's name and the network",
      });
    }
  }

  /** The words of `WWW-Authenticate`: a token from the place that it names, or the password itself. */
  async #authorize(challenge: string): Promise<string> {
    const credentials = await this.#credentials();
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
    const signal = AbortSignal.any([this.#signal, AbortSignal.timeout(answerMillis)]);
    const response = await this.#fetch(realm, { headers: basic ? { authorization: basic } : {}, signal });
    if (!response.ok) throw await this.failure(response, "the request for a token");
    return `Bearer ${tokenSchema.parse(await response.json())}`;
  }
}

function errorWords(text: string): string {
  try {
    const { errors } = errorsSchema.parse(JSON.parse(text));
    return errors.map(({ code, message }) => message ?? code ?? "").join("; ");
  } catch {
    return "";
  }
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? error.cause.message || error.cause.name : error.message;
}
