import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import type { ReadableStream } from "node:stream/web";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import { dockerCredentials, type Credentials } from "./credentials.ts";
import { RegistryHttp } from "./http.ts";
import { originOf, referenceText, type Reference } from "./reference.ts";

/** Content is named by `sha256:…`, as registries do. */
export interface Descriptor {
  mediaType: string;
  digest: string;
  size: number;
  annotations?: Record<string, string>;
}

/** One repository of a registry that speaks the OCI distribution API. Everything received is compared with its digest. */
export interface Registry {
  readonly label: string;
  /** The manifest that the reference names, or another of the same repository. */
  manifest(version?: string): Promise<{ mediaType: string; digest: string; content: Buffer }>;
  /** Puts a manifest under the reference's tag; returns its digest. */
  putManifest(mediaType: string, content: Buffer): Promise<string>;
  hasBlob(digest: string): Promise<boolean>;
  /** The stream ends with INTEGRITY where the bytes are not those that were asked for. */
  blob(descriptor: Pick<Descriptor, "digest" | "size">): Promise<Readable>;
  putBlob(descriptor: Pick<Descriptor, "digest" | "size">, stream: () => Readable): Promise<void>;
}

export interface RegistryOptions {
  signal: AbortSignal;
  credentials?: () => Promise<Credentials | undefined>;
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

export function openRegistry(reference: Reference, { signal, credentials }: RegistryOptions): Registry {
  const http = new RegistryHttp(originOf(reference), { signal, credentials: credentials ?? (() => dockerCredentials(reference.registry)) });
  const base = `/v2/${reference.repository}`;
  const label = referenceText(reference);
  return {
    label,
    manifest: (version = reference.version) => getManifest(http, `${base}/manifests/${version}`, version),
    async putManifest(mediaType, content) {
      if (reference.version.startsWith("sha256:"))
        throw new CloudletError("INVALID", `${label} names content, not a place`, { fix: "push to a tag" });
      const url = `${base}/manifests/${reference.version}`;
      const response = await http.send({ method: "PUT", url, headers: { "content-type": mediaType }, body: content });
      if (response.status !== 201) throw await http.failure(response, `the manifest for ${label}`);
      await response.body?.cancel();
      return sha256(content);
    },
    async hasBlob(digest) {
      const response = await http.send({ method: "HEAD", url: `${base}/blobs/${digest}` });
      if (response.status !== 200 && response.status !== 404) throw await http.failure(response, `the question for ${digest}`);
      return response.status === 200;
    },
    async blob(descriptor) {
      const response = await http.send({ method: "GET", url: `${base}/blobs/${descriptor.digest}` });
      if (response.status !== 200 || response.body === null) throw await http.failure(response, `the request for ${descriptor.digest}`);
      return Readable.from(checked(fromWeb(response.body), descriptor, label), { objectMode: false });
    },
    putBlob: (descriptor, stream) => upload(http, { base, descriptor, stream }),
  };
}

async function getManifest(
  http: RegistryHttp,
  url: string,
  version: string,
): Promise<{ mediaType: string; digest: string; content: Buffer }> {
  const response = await http.send({ method: "GET", url, headers: { accept: manifestTypes.join(", ") } });
  if (response.status !== 200 || response.body === null) throw await http.failure(response, `the request for ${url.slice(4)}`);
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of fromWeb(response.body)) {
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

/** In one piece: a place to put it, then the bytes. */
async function upload(http: RegistryHttp, { base, descriptor, stream }: Upload): Promise<void> {
  const begun = await http.send({ method: "POST", url: `${base}/blobs/uploads/`, headers: { "content-length": "0" } });
  const location = begun.headers.get("location");
  if (begun.status !== 202 || location === null) throw await http.failure(begun, "the start of an upload");
  await begun.body?.cancel();
  const url = new URL(location, http.origin);
  url.searchParams.set("digest", descriptor.digest);
  const body = stream();
  const headers = { "content-type": "application/octet-stream", "content-length": String(descriptor.size) };
  try {
    const response = await http.send({ method: "PUT", url, headers, body });
    if (response.status !== 201) throw await http.failure(response, `the upload of ${descriptor.digest}`);
    await response.body?.cancel();
  } catch (error) {
    // why the bytes stopped coming says more than that they did
    throw body.errored ?? error;
  } finally {
    body.destroy();
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

async function* fromWeb(body: NonNullable<Response["body"]>): AsyncGenerator<Buffer> {
  for await (const chunk of body as ReadableStream<Uint8Array>) yield Buffer.from(chunk.buffer, chunk.byteOffset, chunk.byteLength);
}

function sha256(content: Buffer): string {
  return `sha256:${createHash("sha256").update(content).digest("hex")}`;
}
