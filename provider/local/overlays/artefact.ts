import { CloudletError } from "../../core/errors.ts";
import { ociArchitecture, pullArtefact, pushArtefact, type Layer } from "../registry/artefact.ts";
import type { Descriptor, Registry } from "../registry/registry.ts";
import { openLater, partNames, partOf, type Part, type PartName, type PartSource, type Watch } from "./parts.ts";

const prefix = "application/vnd.cloudlet.overlay";
const artefactType = `${prefix}.v1`;

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

/** Puts an overlay into a registry as an OCI artefact. Returns the artefact's digest. */
export async function pushOverlay(registry: Registry, source: PartSource, watch: Watch): Promise<string> {
  const layerOf = (part: Part): Layer => ({ ...descriptorOf(part), stream: () => openLater(source, part, watch) });
  const manifest = partOf(source, "manifest.json");
  const layers = source.parts.filter((part) => part !== manifest).map(layerOf);
  const { digest } = await pushArtefact(registry, { type: artefactType, config: layerOf(manifest), layers }, watch.status);
  return digest;
}

/** An overlay in a registry. */
export async function openArtefact(registry: Registry): Promise<PartSource> {
  const { type, config, layers } = await pullArtefact(registry, ociArchitecture(process.arch));
  if (type !== artefactType)
    throw new CloudletError("INVALID", `${registry.label} is no overlay: it is ${type}`, {
      fix: "name what `cloudlet overlay push` has put there",
    });
  const parts = partNames.flatMap((name): Part[] => {
    const fitting = [config, ...layers].filter(({ mediaType }) => mediaType === mediaTypes[name]);
    if (fitting.length > 1)
      throw new CloudletError("INVALID", `${registry.label} has the part ${name} twice`, { fix: "push the overlay again" });
    return fitting.map(({ digest, size }) => ({ name, digest: digest.slice("sha256:".length), bytes: size }));
  });
  return { label: registry.label, parts, read: (part) => registry.blob(descriptorOf(part)) };
}

function descriptorOf({ name, digest, bytes }: Part): Descriptor {
  return { mediaType: mediaTypes[name], digest: `sha256:${digest}`, size: bytes };
}
