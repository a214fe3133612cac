import { randomBytes } from "node:crypto";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { afterAll, beforeAll, expect, it } from "vitest";
import { acquireOverlay } from "../../../provider/local/overlays/acquire.ts";
import { pushOverlay } from "../../../provider/local/overlays/artefact.ts";
import { partNames } from "../../../provider/local/overlays/parts.ts";
import { parseReference } from "../../../provider/local/registry/reference.ts";
import { openRegistry, type Registry } from "../../../provider/local/registry/registry.ts";
import { startRegistry, type RealRegistry } from "../registry/realRegistry.ts";
import { bytesOf, digestOf, sampleParts, sourceOf, watch } from "./sample.ts";

let real: RealRegistry;
beforeAll(async () => {
  real = await startRegistry();
});
afterAll(() => real.stop());

const image = (name: string): string => `${real.address}/team/${name}:1`;
const registry = (name: string): Registry => openRegistry(parseReference(image(name)), watch);

it("an overlay comes back from a registry as it was pushed, and pushing it again sends nothing", async () => {
  const contents = sampleParts();
  const digest = await pushOverlay(registry("faces"), sourceOf(contents), watch);
  const sent: string[] = [];
  expect(await pushOverlay(registry("faces"), sourceOf(contents), { ...watch, status: (text) => sent.push(text) })).toBe(digest);
  expect(sent).toEqual([]);
  const found = await acquireOverlay({ image: image("faces") }, watch);
  expect(found.digest).toBe(digestOf(contents["manifest.json"]));
  const blobs = await Promise.all(found.blobs.map((blob) => bytesOf(blob.stream())));
  expect(blobs).toEqual(partNames.map((name) => contents[name]).reverse());
});

it("an upload whose source is damaged is refused with the part's name, and the tag is not set", async () => {
  const contents = sampleParts();
  const pack = Buffer.concat([contents.pack.subarray(1), Buffer.from("x")]);
  const pushing = pushOverlay(registry("damaged"), sourceOf(contents, { ...contents, pack }), watch);
  await expect(pushing).rejects.toMatchObject({
    code: "INTEGRITY",
    message: expect.stringMatching(/^pack of memory is damaged/) as string,
  });
  await expect(registry("damaged").manifest()).rejects.toMatchObject({ code: "NOT_FOUND" });
});

it.each(partNames)("a bit that the registry has lost is found in %s", async (name) => {
  const contents = sampleParts();
  const place = `lost-${partNames.indexOf(name)}`;
  await pushOverlay(registry(place), sourceOf(contents), watch);
  const digest = digestOf(contents[name]);
  const files = await readdir(real.directory, { recursive: true });
  const file = join(real.directory, files.find((path) => path.endsWith(`${digest}/data`)) ?? "");
  const bytes = await readFile(file);
  bytes[bytes.length - 1] = (bytes.at(-1) ?? 0) ^ 1;
  await writeFile(file, bytes);
  const reading = acquireOverlay({ image: image(place) }, watch).then(({ blobs }) =>
    Promise.all(blobs.map((blob) => bytesOf(blob.stream()))),
  );
  await expect(reading).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringContaining(`${name} of `) as string });
});

it("what is no overlay is refused by what it is", async () => {
  const content = randomBytes(10);
  const config = { mediaType: "application/vnd.oci.image.config.v1+json", digest: `sha256:${digestOf(content)}`, size: 10 };
  await registry("debian").putBlob(config, () => Readable.from([content]));
  const mediaType = "application/vnd.oci.image.manifest.v1+json";
  await registry("debian").putManifest(mediaType, Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, config, layers: [] })));
  await expect(acquireOverlay({ image: image("debian") }, watch)).rejects.toMatchObject({
    code: "INVALID",
    message: expect.stringContaining("is no overlay: it is application/vnd.oci.image.config") as string,
  });
});
