import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { setTimeout as delay } from "node:timers/promises";
import { z } from "zod";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { HttpResponse } from "../http.ts";
import { dockerCredentials, type Credentials } from "./credentials.ts";
import { RegistryHttp } from "./http.ts";
import { originOf, referenceText, type Reference } from "./reference.ts";

/** Content is named by `sha256:…`, as registries do. */
export interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
  annotations?: Record<string, string> | undefined;
}

/** One repository of a registry that speaks the OCI distribution API. Everything received is compared with its digest. */
export interface Registry {
  readonly label: string;
  /** The manifest that the reference names, or another of the same repository. */
  manifest(version?: string): Promise<{ mediaType: string; digest: string; content: Buffer }>;
  /** Puts a manifest under the reference's tag; returns its digest. */
  putManifest(mediaType: string, content: Buffer): Promise<string>;
  hasBlob(digest: string): Promise<boolean>;
  /** The stream goes on by itself where a connection broke, and ends with INTEGRITY where the bytes are not those that were asked for. */
  blob(descriptor: Pick<Descriptor, "digest" | "size">): Promise<Readable>;
  /** Sent anew where a connection broke. */
  putBlob(descriptor: Pick<Descriptor, "digest" | "size">, stream: () => Readable): Promise<void>;
}

export interface RegistryOptions {
  signal: AbortSignal;
  credentials?: () => Promise<Credentials | undefined>;
  /** How long the registry may be silent, in milliseconds. */
  silenceMillis?: number;
}

/** What is understood of all that a registry may keep. */
const manifestTypes = [
  "application/vnd.oci.image.manifest.v1+json",
  "application/vnd.oci.image.index.v1+json",
  "application/vnd.docker.distribution.manifest.v2+json",
  "application/vnd.docker.distribution.manifest.list.v2+json",
];
const manifestLimit = 4 * 1024 * 1024;
const digestSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/, "must be sha256 and 64 hex digits");

/** Described content as it stands in a manifest of a registry. */
export const descriptorSchema = z.object({
  mediaType: z.string(),
  digest: digestSchema,
  size: z.int().min(0),
  annotations: z.record(z.string(), z.string()).optional(),
});

export function openRegistry(reference: Reference, { signal, credentials, silenceMillis }: RegistryOptions): Registry {
  const http = new RegistryHttp(originOf(reference), {
    signal,
    credentials: credentials ?? (() => dockerCredentials(reference.registry)),
    silenceMillis,
  });
  const base = `/v2/${reference.repository}`;
  const label = referenceText(reference);
  return {
    label,
    manifest: (version = reference.version) => getManifest(http, `${base}/manifests/${version}`, version),
    async putManifest(mediaType, content) {
      if (reference.version.startsWith("sha256:"))
        throw new CloudletError("INVALID", `${label} names content, not a place`, { fix: "push to a tag" });
      const url = `${base}/manifests/${reference.version}`;
      const response = await http.send({ method: "PUT", url, headers: { "content-type": mediaType }, body: () => content });
      if (response.status !== 201) throw await http.failure(response, `the manifest for ${label}`);
      response.discard();
      return sha256(content);
    },
    async hasBlob(digest) {
      const response = await http.send({ method: "HEAD", url: `${base}/blobs/${digest}` });
      if (response.status !== 200 && response.status !== 404) throw await http.failure(response, `the question for ${digest}`);
      return response.status === 200;
    },
    async blob(descriptor) {
      const source = { http, url: `${base}/blobs/${descriptor.digest}`, descriptor, signal };
      // a blob that is not there is said at once
      const first = await open(source, 0);
      return Readable.from(checked(continued(source, first), descriptor, label), { objectMode: false });
    },
    async putBlob(descriptor, stream) {
      for (let attempt = 1; ; attempt += 1) {
        try {
          return await upload(http, { base, descriptor, stream });
        } catch (error) {
          if (!isBroken(error) || attempt >= attemptLimit) throw error;
          await delay(250 * attempt, undefined, { signal });
        }
      }
    },
  };
}

/** So often a connection may break with nothing gained in between. */
const attemptLimit = 3;

function isBroken(error: unknown): boolean {
  return codeOf(error) === "UNREACHABLE" || codeOf(error) === "TIMEOUT";
}

async function getManifest(
  http: RegistryHttp,
  url: string,
  version: string,
): Promise<{ mediaType: string; digest: string; content: Buffer }> {
  const response = await http.send({ method: "GET", url, headers: { accept: manifestTypes.join(", ") } });
  if (response.status !== 200) throw await http.failure(response, `the request for ${url.slice(4)}`);
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response.body) {
    bytes += chunk.length;
    if (bytes > manifestLimit) throw new CloudletError("INVALID", `the manifest at ${http.origin.host}${url} is larger than 4 MiB`);
    chunks.push(chunk);
  }
  const content = Buffer.concat(chunks);
  const digest = sha256(content);
  const announced = version.startsWith("sha256:") ? version : (response.headers.get("docker-content-digest") ?? digest);
  if (digest !== announced) throw new CloudletError("INTEGRITY", `the manifest at ${http.origin.host}${url} has digest ${digest}`);
  const mediaType = (response.headers.get("content-type") ?? "").split(";")[0] ?? "";
  return { mediaType: mediaType || "application/vnd.oci.image.manifest.v1+json", digest, content };
}

interface Upload {
  base: string;
  descriptor: Pick<Descriptor, "digest" | "size">;
  stream: () => Readable;
}

/** A place to put it, the bytes, and the digest that makes them a blob. */
async function upload(http: RegistryHttp, { base, descriptor, stream }: Upload): Promise<void> {
  const begun = await http.send({ method: "POST", url: `${base}/blobs/uploads/`, headers: { "content-length": "0" } });
  let url = await nextPlace(http, begun, 202);
  const bodies: Readable[] = [];
  const body = (): Readable => bodies[bodies.push(stream()) - 1] ?? Readable.from([]);
  try {
    if (descriptor.size > 0) {
      const headers = { "content-type": "application/octet-stream", "content-length": String(descriptor.size) };
      url = await nextPlace(http, await http.send({ method: "PATCH", url, headers, body, answerMillis: commitMillis }), 202);
    }
    const target = new URL(url);
    target.searchParams.set("digest", descriptor.digest);
    const response = await http.send({ method: "PUT", url: target, headers: { "content-length": "0" }, silenceMillis: commitMillis });
    if (response.status !== 201) throw await http.failure(response, `the upload of ${descriptor.digest}`);
    response.discard();
  } catch (error) {
    await forget(http, url);
    // why the bytes stopped coming says more than that they did
    throw bodies.find(({ errored }) => errored !== null)?.errored ?? error;
  } finally {
    for (const used of bodies) used.destroy();
  }
}

/** A registry reads a large blob once more before it answers. */
const commitMillis = 300_000;

/** What was begun and will not be ended; a registry that is away forgets it by itself one day. */
async function forget(http: RegistryHttp, url: URL): Promise<void> {
  const gone = http.send({ method: "DELETE", url, signal: AbortSignal.timeout(5_000) });
  await gone.then((response) => response.discard()).catch(() => undefined);
}

/** Each answer says where an upload goes on. */
async function nextPlace(http: RegistryHttp, response: HttpResponse, status: number): Promise<URL> {
  const location = response.headers.get("location");
  if (response.status !== status || location === null) throw await http.failure(response, "an upload");
  response.discard();
  return new URL(location, response.url);
}

interface BlobSource {
  http: RegistryHttp;
  url: string;
  descriptor: Pick<Descriptor, "digest" | "size">;
  signal: AbortSignal;
}

async function open({ http, url, descriptor }: BlobSource, from: number): Promise<HttpResponse> {
  const headers = { "accept-encoding": "identity", ...(from > 0 && { range: `bytes=${String(from)}-` }) };
  const response = await http.send({ method: "GET", url, headers });
  if (response.status === 200 || (from > 0 && response.status === 206)) return response;
  throw await http.failure(response, `the request for ${descriptor.digest}`);
}

/** The bytes of a blob over as many connections as it takes. */
async function* continued(source: BlobSource, first: HttpResponse): AsyncGenerator<Buffer> {
  let response: HttpResponse | undefined = first;
  let bytes = 0;
  for (let attempt = 1; ; attempt += 1) {
    try {
      response ??= await open(source, bytes);
      // a server that knows no ranges sends everything again
      let skipped = response.status === 206 ? bytes : 0;
      for await (const chunk of response.body) {
        const fresh: Buffer = chunk.subarray(Math.min(chunk.length, bytes - skipped));
        skipped += chunk.length - fresh.length;
        if (fresh.length === 0) continue;
        bytes += fresh.length;
        skipped = bytes;
        attempt = 1;
        yield fresh;
      }
      return;
    } catch (error) {
      response = undefined;
      if (!isBroken(error) || attempt >= attemptLimit) throw error;
      await delay(250 * attempt, undefined, { signal: source.signal });
    }
  }
}

async function* checked(
  source: AsyncIterable<Buffer>,
  { digest, size }: Pick<Descriptor, "digest" | "size">,
  label: string,
): AsyncGenerator<Buffer> {
  const hash = createHash("sha256");
  let bytes = 0;
  for await (const chunk of source) {
    bytes += chunk.length;
    if (bytes > size) break;
    hash.update(chunk);
    yield chunk;
  }
  const found = `sha256:${hash.digest("hex")}`;
  if (bytes !== size || found !== digest)
    throw new CloudletError(
      "INTEGRITY",
      `${label} gave ${bytes > size ? "more than" : String(bytes)} bytes for ${digest} of ${String(size)} bytes, with digest ${found}`,
    );
}

function sha256(content: Buffer): string {
  return `sha256:${createHash("sha256").update(content).digest("hex")}`;
}
