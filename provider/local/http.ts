import { Readable } from "node:stream";
import { CloudletError } from "../core/errors.ts";

export interface HttpRequest {
  method?: "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE";
  headers?: Record<string, string>;
  body?: Buffer | Readable;
  signal: AbortSignal;
  /** How long nothing may move, in milliseconds. */
  silenceMillis?: number | undefined;
  /** The same once the whole body is sent. */
  answerMillis?: number | undefined;
}

export interface HttpResponse {
  status: number;
  headers: Headers;
  /** Where redirects have led. */
  url: URL;
  /** To be read, or left by `discard`. */
  body: AsyncIterable<Buffer>;
  discard(): void;
}

const defaultSilenceMillis = 60_000;

/** HTTP from the operator's machine to anywhere. Redirects are followed, but never from HTTPS to plain HTTP; any status is a result. */
export async function request(url: URL, { method = "GET", headers = {}, body, signal, ...patience }: HttpRequest): Promise<HttpResponse> {
  const watch = watchSilence(url, signal, patience.silenceMillis ?? defaultSilenceMillis);
  try {
    const response = await fetch(url, {
      method,
      headers,
      ...(body instanceof Readable && { body: moving(body, watch, patience.answerMillis), duplex: "half" }),
      ...(Buffer.isBuffer(body) && { body: new Uint8Array(body) }),
      signal: watch.signal,
    });
    watch.touch();
    const arrivedAt = new URL(response.url);
    if (url.protocol === "https:" && arrivedAt.protocol !== "https:") {
      watch.end();
      throw new CloudletError("REFUSED", `${url.host} redirects to ${arrivedAt.host} without TLS`, {
        fix: "give an address that stays with https",
      });
    }
    if (response.body === null) watch.end();
    const discard = (): void => watch.end();
    return { status: response.status, headers: response.headers, url: arrivedAt, body: watched(response, watch), discard };
  } catch (error) {
    throw watch.translate(error);
  }
}

/** An http or https URL, or an error that says what it was for. */
export function webUrl(text: string, what: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  if (url?.protocol === "http:" || url?.protocol === "https:") return url;
  throw new CloudletError("INVALID", `${what} is no http or https URL: ${text}`, { fix: "give one such as https://host/path" });
}

interface Watch {
  signal: AbortSignal;
  /** Something moved; the next may take so long. */
  touch(millis?: number): void;
  /** It is not the far end's turn. */
  pause(): void;
  /** What is still open is closed. */
  end(): void;
  translate(error: unknown): CloudletError;
}

function watchSilence(url: URL, signal: AbortSignal, millis: number): Watch {
  const silence = new AbortController();
  const over = new AbortController();
  let timer = setTimeout(() => silence.abort(), millis);
  const pause = (): void => clearTimeout(timer);
  const touch = (next = millis): void => {
    pause();
    timer = setTimeout(() => silence.abort(), next);
  };
  const end = (): void => {
    pause();
    over.abort();
  };
  const translate = (error: unknown): CloudletError => {
    pause();
    if (error instanceof CloudletError) return error;
    if (signal.aborted) return new CloudletError("ABORTED", `the transfer with ${url.host} was cancelled`, { cause: error });
    if (silence.signal.aborted)
      return new CloudletError("TIMEOUT", `${url.host} was silent for too long`, { fix: "check the server and the network" });
    return new CloudletError("UNREACHABLE", `${url.host} did not answer: ${reasonOf(error)}`, {
      cause: error,
      fix: "check the name and the network",
    });
  };
  return { signal: AbortSignal.any([signal, silence.signal, over.signal]), touch, pause, end, translate };
}

async function* watched(response: Response, watch: Watch): AsyncGenerator<Buffer> {
  try {
    for await (const chunk of Readable.fromWeb(response.body ?? new ReadableStream({ start: (controller) => controller.close() }))) {
      // the reader may take its time
      watch.pause();
      yield chunk as Buffer;
      watch.touch();
    }
  } catch (error) {
    throw watch.translate(error);
  } finally {
    watch.end();
  }
}

/** A long body counts as alive as long as it is taken. */
async function* moving(source: Readable, watch: Watch, answerMillis: number | undefined): AsyncGenerator<Buffer> {
  for await (const chunk of source as AsyncIterable<Buffer>) {
    watch.touch();
    yield chunk;
  }
  watch.touch(answerMillis);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  return error.cause instanceof Error ? error.cause.message || error.cause.name : error.message;
}
