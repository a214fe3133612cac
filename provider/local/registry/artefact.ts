import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import { descriptorSchema, type Descriptor, type Registry } from "./registry.ts";

export const manifestType = "application/vnd.oci.image.manifest.v1+json";
const emptyType = "application/vnd.oci.empty.v1+json";

export const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  artifactType: z.string().optional(),
  config: descriptorSchema,
  layers: z.array(descriptorSchema),
  annotations: z.record(z.string(), z.string()).optional(),
});

const platformSchema = z.object({ architecture: z.string(), os: z.string() });
const indexSchema = z.object({
  schemaVersion: z.literal(2),
  manifests: z.array(descriptorSchema.extend({ platform: platformSchema.optional() })),
});

/** What is to be stored. */
export interface Layer extends Descriptor {
  /** Asked for again where an upload was interrupted. */
  stream(): Readable;
}

export interface Artefact {
  /** Of its manifest, `sha256:…`. */
  digest: string;
  /** What it is: its own word, or the media type of its configuration. */
  type: string;
  annotations: Record<string, string>;
  config: Descriptor;
  layers: Descriptor[];
}

/** Stores blobs and a manifest that names them. What the registry has is not sent again; the tag is set last. */
export async function pushArtefact(
  registry: Registry,
  artefact: { type: string; config?: Layer; layers: Layer[]; annotations?: Record<string, string> },
  status: (text: string) => void,
): Promise<{ digest: string; bytesSent: number }> {
  const config = artefact.config ?? emptyConfig();
  let bytesSent = 0;
  for (const layer of [config, ...artefact.layers]) {
    if (await registry.hasBlob(layer.digest)) continue;
    status(`pushing ${String(layer.size)} bytes to ${registry.label}`);
    await registry.putBlob(layer, () => layer.stream());
    bytesSent += layer.size;
  }
  const manifest = {
    schemaVersion: 2,
    mediaType: manifestType,
    artifactType: artefact.type,
    config: descriptorOf(config),
    layers: artefact.layers.map(descriptorOf),
    ...(artefact.annotations && { annotations: artefact.annotations }),
  };
  return { digest: await registry.putManifest(manifestType, Buffer.from(JSON.stringify(manifest))), bytesSent };
}

/** What the reference names; of several platforms the one for Linux on this architecture (`amd64`, `arm64`). */
export async function pullArtefact(registry: Registry, architecture: string, version?: string): Promise<Artefact> {
  const found = await registry.manifest(version);
  const document = parse(found.content, registry.label);
  if (typeof document === "object" && document !== null && "manifests" in document) {
    const digest = choose(check(indexSchema, document, registry.label), { architecture, label: registry.label });
    return pullArtefact(registry, architecture, digest);
  }
  const { artifactType, config, layers, annotations = {} } = check(manifestSchema, document, registry.label);
  return { digest: found.digest, type: artifactType ?? config.mediaType, annotations, config, layers };
}

/** The registries' name for what Node calls `process.arch` and Linux `uname -m`. */
export function ociArchitecture(name: string): string {
  return { x64: "amd64", x86_64: "amd64", aarch64: "arm64", armv7l: "arm", ia32: "386", i686: "386" }[name] ?? name;
}

function choose(index: z.infer<typeof indexSchema>, { architecture, label }: { architecture: string; label: string }): string {
  const platforms = index.manifests.flatMap(({ platform, digest }) => (platform === undefined ? [] : [{ ...platform, digest }]));
  const found = platforms.find((platform) => platform.os === "linux" && platform.architecture === architecture);
  const only = index.manifests.length === 1 ? index.manifests[0] : undefined;
  const digest = found?.digest ?? (only?.platform === undefined ? only?.digest : undefined);
  if (digest !== undefined) return digest;
  const offered = platforms.filter(({ os }) => os !== "unknown").map((platform) => `${platform.os}/${platform.architecture}`);
  throw new CloudletError("NOT_FOUND", `${label} has nothing for linux/${architecture}, only for ${offered.join(", ") || "no platform"}`, {
    fix: "name another image",
  });
}

function emptyConfig(): Layer {
  const bytes = Buffer.from("{}");
  const digest = `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
  return { mediaType: emptyType, digest, size: bytes.length, stream: () => Readable.from([bytes]) };
}

function descriptorOf({ mediaType, digest, size, annotations }: Descriptor): Descriptor {
  return { mediaType, digest, size, ...(annotations && { annotations }) };
}

function parse(bytes: Buffer, label: string): unknown {
  try {
    return JSON.parse(bytes.toString("utf8"));
  } catch (cause) {
    throw new CloudletError("INTEGRITY", `the manifest of ${label} is no JSON`, { cause, fix: "push it again" });
  }
}

function check<S extends z.ZodType>(schema: S, document: unknown, label: string): z.infer<S> {
  const parsed = schema.safeParse(document);
  if (parsed.success) return parsed.data;
  throw new CloudletError(
    "INTEGRITY",
    `the manifest of ${label} is none: ${parsed.error.issues[0]?.path.join(".") ?? ""} is not as it should be`,
    {
      cause: parsed.error,
      fix: "push it again; manifests of the first schema are not read",
    },
  );
}
