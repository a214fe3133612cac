import type { Readable } from "node:stream";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import { descriptorSchema, type Descriptor, type Registry } from "../registry/registry.ts";
import { open, partNames, partOf, type PartSource, type Part, type PartName, type Watch } from "./parts.ts";

const prefix = "application/vnd.cloudlet.overlay";
const manifestType = "application/vnd.oci.image.manifest.v1+json";

/** What a registry calls each part; the config of the artefact is the overlay's manifest. */
const mediaTypes: Record<PartName, string> = {
  "manifest.json": `${prefix}.manifest.v1+json`,
  index: `${prefix}.index.v1`,
  pack: `${prefix}.pack.v1`,
  "parent/manifest.json": `${prefix}.parent.manifest.v1+json`,
  "parent/index": `${prefix}.parent.index.v1`,
  "parent/pack": `${prefix}.parent.pack.v1`,
  base: `${prefix}.base.v1`,
};

const artefactSchema = z.object({ schemaVersion: z.literal(2), config: descriptorSchema, layers: z.array(descriptorSchema) });

/** Puts an overlay into a registry as an OCI artefact; the tag is set last. Returns the artefact's digest. */
export async function pushArtefact(registry: Registry, source: PartSource, watch: Watch): Promise<string> {
  for (const part of source.parts) {
    const descriptor = descriptorOf(part);
    if (await registry.hasBlob(descriptor.digest)) watch.status(`${part.name}: ${registry.label} has it`);
    else {
      const stream = await open(source, part, watch);
      await registry.putBlob(descriptor, () => stream);
    }
  }
  const config = descriptorOf(partOf(source, "manifest.json"));
  const layers = source.parts.filter(({ name }) => name !== "manifest.json").map(descriptorOf);
  const artefact = { schemaVersion: 2, mediaType: manifestType, artifactType: `${prefix}.v1`, config, layers };
  return registry.putManifest(manifestType, Buffer.from(JSON.stringify(artefact)));
}

/** An overlay in a registry. */
export async function openArtefact(registry: Registry): Promise<PartSource> {
  const { mediaType, content } = await registry.manifest();
  const parsed = mediaType === manifestType ? artefactSchema.safeParse(parseJson(content)) : undefined;
  if (parsed?.data?.config.mediaType !== mediaTypes["manifest.json"])
    throw new CloudletError("INVALID", `${registry.label} is no overlay: it is ${parsed?.data?.config.mediaType ?? mediaType}`, {
      fix: "name what `cloudlet overlay push` has put there",
    });
  const { config, layers } = parsed.data;
  const parts = partNames.flatMap((name): Part[] => {
    const fitting = [config, ...layers].filter((it) => it.mediaType === mediaTypes[name]);
    if (fitting.length > 1)
      throw new CloudletError("INVALID", `${registry.label} has the part ${name} twice`, { fix: "push the overlay again" });
    return fitting.map(({ digest, size }) => ({ name, digest: digest.slice("sha256:".length), bytes: size }));
  });
  return {
    label: registry.label,
    parts,
    read: (part): Promise<Readable> => registry.blob(descriptorOf(part)),
  };
}

function descriptorOf({ name, digest, bytes }: Part): Descriptor {
  return { mediaType: mediaTypes[name], digest: `sha256:${digest}`, size: bytes };
}

function parseJson(content: Buffer): unknown {
  try {
    return JSON.parse(content.toString("utf8"));
  } catch {
    return undefined;
  }
}
