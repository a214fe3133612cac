import { createWriteStream } from "node:fs";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import type { AcquireOptions, LocalBlob } from "../core/context.ts";
import { CloudletError } from "../core/errors.ts";
import { keyOf, type Cache } from "./cache.ts";
import { flatten, type Flattening } from "./flatten.ts";
import { pullArtefact, type Artefact } from "./registry/artefact.ts";
import { parseReference } from "./registry/reference.ts";
import { openRegistry, type Descriptor, type Registry, type RegistryOptions } from "./registry/registry.ts";

/** Of several platforms; gateways are such machines. A reference by digest takes any other. */
const architecture = "amd64";

const containerTypes = ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
const overlayType = /^application\/vnd\.cloudlet\.overlay/;

interface Pull {
  registry: Registry;
  cache: Cache;
  options: AcquireOptions;
}

/** A container image as the tar of its root file system, or the one file of an artefact. */
export async function pullImage(
  image: string,
  { cache, options, credentials }: { cache: Cache; options: AcquireOptions; credentials?: RegistryOptions["credentials"] },
): Promise<LocalBlob> {
  const registry = openRegistry(parseReference(image), { signal: options.signal, ...(credentials && { credentials }) });
  options.status(`looking at ${registry.label}`);
  const artefact = await pullArtefact(registry, architecture);
  if (overlayType.test(artefact.type))
    throw new CloudletError("INVALID", `${registry.label} holds an overlay, not an image`, { fix: "give it to an Overlay" });
  const pull = { registry, cache, options };
  return containerTypes.includes(artefact.type) ? await rootOf(artefact, pull) : await fileOf(artefact, pull);
}

async function fileOf({ layers, type }: Artefact, { registry, cache, options }: Pull): Promise<LocalBlob> {
  const [layer] = layers;
  if (layer === undefined || layers.length > 1) {
    throw new CloudletError("INVALID", `${registry.label} (${type}) has ${String(layers.length)} files, and an image is one`, {
      fix: "push an artefact with the image as its only layer",
    });
  }
  const known = await cache.find(layer.digest.slice("sha256:".length));
  if (known) return known;
  const path = await cache.temporary();
  await fetchLayer(layer, path, { registry, cache, options });
  return cache.keep(path);
}

async function rootOf(artefact: Artefact, pull: Pull): Promise<LocalBlob> {
  const { registry, cache, options } = pull;
  const key = keyOf("image", artefact.digest);
  const note = await cache.note(key);
  const known = note && (await cache.find(note.digest));
  if (known) return known;
  return await cache.withDirectory(async (directory) => {
    const layers: Flattening["layers"] = [];
    for (const [index, layer] of artefact.layers.entries()) {
      const path = join(directory, String(index));
      await fetchLayer(layer, path, pull);
      layers.push({ name: `layer ${layer.digest} of ${registry.label}`, path });
    }
    options.status(`unpacking ${registry.label}`);
    const root = join(directory, "root.tar");
    await flatten({ layers, target: root }, options.signal);
    const blob = await cache.keep(root);
    await cache.write(key, { digest: blob.digest });
    return blob;
  });
}

async function fetchLayer(layer: Descriptor, path: string, { registry, cache, options }: Pull): Promise<void> {
  await cache.ensureSpace(layer.size, `${layer.digest} of ${registry.label}`);
  options.status(`pulling ${String(Math.ceil(layer.size / 1024 / 1024))} MiB of ${registry.label}`);
  await pipeline(await registry.blob(layer), createWriteStream(path, { mode: 0o600 }), { signal: options.signal });
}
