import { createWriteStream } from "node:fs";
import { readdir, rename, rm, stat } from "node:fs/promises";
import { basename, dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import type { AcquireOptions, LocalBlob } from "../core/context.ts";
import { CloudletError, codeOf, type ErrorCode } from "../core/errors.ts";
import { keyOf, type Cache, type Note } from "./cache.ts";
import { request, webUrl, type HttpResponse } from "./http.ts";

export interface DownloadLimits {
  /** No image is larger. */
  bytes: number;
  /** How long the server may be silent. */
  silenceMillis?: number | undefined;
}

interface Download {
  url: URL;
  headers: Record<string, string>;
  /** For messages: without what may be secret in it. */
  label: string;
  key: string;
  cache: Cache;
  limits: DownloadLimits;
  options: AcquireOptions;
}

/** So often a transfer may break with nothing gained in between. */
const attemptLimit = 4;

/** What is at a URL. A download that was cut off goes on where it was, also in a later run; what did not change is not sent again. */
export async function download(
  address: string,
  { cache, limits, options }: { cache: Cache; limits: DownloadLimits; options: AcquireOptions },
): Promise<LocalBlob> {
  const url = webUrl(address, "the image's address");
  const label = `${url.origin}${url.pathname}`;
  const from: Download = { url, headers: identity(url), label, key: keyOf("url", address), cache, limits, options };
  const note = options.digest === undefined ? await cache.note(from.key) : undefined;
  const known = note && (await cache.find(note.digest));
  for (let attempt = 1, before = -1; ; attempt += 1) {
    const path = await claim(from);
    const bytes = await sizeOf(path);
    if (bytes > before) attempt = 1;
    before = bytes;
    try {
      const validators = await fetchTo(path, from, known && note);
      if (validators === undefined && known) return known;
      const blob = await cache.keep(path);
      await cache.write(from.key, { digest: blob.digest, ...validators });
      return blob;
    } catch (error) {
      if (!["UNREACHABLE", "TIMEOUT"].includes(codeOf(error)) || attempt >= attemptLimit) throw error;
      options.status(`${label}: ${error instanceof Error ? error.message : "cut off"}; trying again`);
      await delay(500 * attempt, undefined, { signal: options.signal });
    }
  }
}

/** fetch takes no credentials in a URL. */
function identity(url: URL): Record<string, string> {
  const { username, password } = url;
  url.username = "";
  url.password = "";
  // a compressed answer has no ranges, and images are compressed already
  const headers = { "accept-encoding": "identity" };
  if (username === "") return headers;
  const words = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`;
  return { ...headers, authorization: `Basic ${Buffer.from(words).toString("base64")}` };
}

/** undefined = what is known has not changed. */
async function fetchTo(path: string, from: Download, known: Note | undefined): Promise<Omit<Note, "digest"> | undefined> {
  const have = await sizeOf(path);
  const response = await ask(from, { have, known });
  if (response.status === 304) return void response.discard();
  const etag = response.headers.get("etag") ?? undefined;
  const modified = response.headers.get("last-modified") ?? undefined;
  const total = totalOf(response);
  const current = markOf({ etag, modified, total });
  const resumed = response.status === 206 && current !== undefined && current === basename(path).split(".")[1];
  if (response.status === 206 && !resumed) {
    // it is another file by now: begin anew
    response.discard();
    await rm(path, { force: true });
    return fetchTo(path, from, undefined);
  }
  await receive(response, { path, from, have: resumed ? have : 0, total, mark: current ?? "none" });
  return { ...(etag && { etag }), ...(modified && { modified }) };
}

async function ask(from: Download, { have, known }: { have: number; known: Note | undefined }): Promise<HttpResponse> {
  const headers = {
    ...from.headers,
    ...(have > 0 && { range: `bytes=${String(have)}-` }),
    ...(have === 0 && known?.etag && { "if-none-match": known.etag }),
    ...(have === 0 && known?.modified && { "if-modified-since": known.modified }),
  };
  const { signal } = from.options;
  const response = await request(from.url, { headers, signal, silenceMillis: from.limits.silenceMillis });
  if ([200, 206, 304].includes(response.status)) return response;
  response.discard();
  // there is nothing behind what we have: it was whole, or is another file now
  if (response.status === 416 && have > 0) return ask(from, { have: 0, known: undefined });
  throw statusError(response.status, from.label);
}

function statusError(status: number, label: string): CloudletError {
  const codes: Record<number, ErrorCode> = { 401: "UNAUTHORIZED", 403: "UNAUTHORIZED", 404: "NOT_FOUND", 410: "NOT_FOUND", 429: "BUSY" };
  const code = codes[status] ?? (status >= 500 ? "UNREACHABLE" : "FAILED");
  return new CloudletError(code, `${label} answers with HTTP ${String(status)}`, {
    fix: "check the address and that it is open to this machine",
  });
}

interface Receiving {
  path: string;
  from: Download;
  /** Bytes of the file that stay. */
  have: number;
  total: number | undefined;
  mark: string;
}

async function receive(response: HttpResponse, { path, from, have, total, mark }: Receiving): Promise<void> {
  const { cache, limits, options, label } = from;
  if ((total ?? 0) > limits.bytes) {
    response.discard();
    throw tooLarge(label, limits);
  }
  await cache.ensureSpace((total ?? 0) - have, label);
  // the name says which version of the file it is a part of
  const target = join(dirname(path), `${from.key}.${mark}.${String(process.pid)}.part`);
  if (have > 0) await rename(path, target);
  else await rm(path, { force: true });
  let bytes = have;
  let told = Date.now();
  async function* counted(): AsyncGenerator<Buffer> {
    for await (const chunk of response.body) {
      bytes += chunk.length;
      if (bytes > limits.bytes) throw tooLarge(label, limits);
      if (Date.now() - told > 2_000) {
        told = Date.now();
        options.status(`downloading ${label}: ${mib(bytes)}${total === undefined ? "" : ` of ${mib(total)}`} MiB`);
      }
      yield chunk;
    }
  }
  await pipeline(counted(), createWriteStream(target, { flags: have > 0 ? "a" : "w", mode: 0o600 }));
  if (total !== undefined && bytes !== total)
    throw new CloudletError("UNREACHABLE", `${label} sent ${String(bytes)} of ${String(total)} bytes`);
  await rename(target, path);
}

/** Which version of a file a server has; undefined = it does not say. */
function markOf({
  etag,
  modified,
  total,
}: {
  etag: string | undefined;
  modified: string | undefined;
  total: number | undefined;
}): string | undefined {
  if (etag !== undefined && !etag.startsWith("W/")) return keyOf(etag, String(total)).slice(0, 16);
  return modified === undefined ? undefined : keyOf(modified, String(total)).slice(0, 16);
}

function totalOf({ status, headers }: HttpResponse): number | undefined {
  const range = /\/(\d+)$/.exec(headers.get("content-range") ?? "")?.[1];
  const text = status === 206 ? range : headers.get("content-encoding") === null ? headers.get("content-length") : undefined;
  return text === undefined || text === null ? undefined : Number(text);
}

/** A part that nobody works on any more becomes ours; else a new one begins. */
async function claim({ key, cache }: Download): Promise<string> {
  const path = await cache.temporary(`${key}.none.${String(process.pid)}.part`);
  const folder = dirname(path);
  const parts = (await readdir(folder)).filter((name) => name.startsWith(`${key}.`) && name.endsWith(".part"));
  const ours = parts.find((name) => name.split(".")[2] === String(process.pid));
  if (ours !== undefined) return join(folder, ours);
  for (const name of parts) {
    const [, mark = "none", pid = ""] = name.split(".");
    if (isAlive(Number(pid))) continue;
    const mine = join(folder, `${key}.${mark}.${String(process.pid)}.part`);
    const won = await rename(join(folder, name), mine).then(
      () => true,
      () => false,
    );
    if (won) return mine;
  }
  return path;
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return error instanceof Error && "code" in error && error.code === "EPERM";
  }
}

async function sizeOf(path: string): Promise<number> {
  return (await stat(path).catch(() => undefined))?.size ?? 0;
}

function tooLarge(label: string, { bytes }: DownloadLimits): CloudletError {
  return new CloudletError("REFUSED", `${label} has more than ${mib(bytes)} MiB`, { fix: "give a smaller image" });
}

function mib(bytes: number): string {
  return String(Math.ceil(bytes / 1024 / 1024));
}
