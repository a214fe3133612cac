import { createHash, randomBytes } from "node:crypto";
import { Readable } from "node:stream";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { parseReference } from "../../../provider/local/registry/reference.ts";
import { openRegistry } from "../../../provider/local/registry/registry.ts";
import { startRegistry, type RealRegistry } from "./realRegistry.ts";

const sha256 = (content: Buffer): string => `sha256:${createHash("sha256").update(content).digest("hex")}`;
const signal = AbortSignal.timeout(120_000);

describe.each([false, true])("Debian's docker-registry, with a password: %s", (password) => {
  let real: RealRegistry;
  beforeAll(async () => {
    real = await startRegistry({ password });
  });
  afterAll(() => real.stop());

  const open = (version: string, secret = "secret") =>
    openRegistry(parseReference(`${real.address}/team/faces:${version}`), {
      signal,
      credentials: () => Promise.resolve(password ? { user: "pusher", password: secret } : undefined),
    });

  it("takes and gives back blobs of several megabytes, and a manifest by tag and digest", async () => {
    const registry = open("1.0");
    const content = randomBytes(9_000_001);
    const blob = { digest: sha256(content), size: content.length };
    expect(await registry.hasBlob(blob.digest)).toBe(false);
    await registry.putBlob(blob, () => Readable.from([content.subarray(0, 5), content.subarray(5)]));
    expect(await registry.hasBlob(blob.digest)).toBe(true);
    expect(Buffer.concat(await (await registry.blob(blob)).toArray()).equals(content)).toBe(true);
    const descriptor = { ...blob, mediaType: "application/octet-stream" };
    const mediaType = "application/vnd.oci.image.manifest.v1+json";
    const manifest = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, config: descriptor, layers: [descriptor] }));
    const digest = await registry.putManifest(mediaType, manifest);
    expect(await registry.manifest()).toEqual({ mediaType, digest, content: manifest });
    expect(await open("2.0").manifest(digest)).toMatchObject({ digest });
  });

  it("keeps nothing of an upload whose bytes are others, or break off", async () => {
    const registry = open("1.0");
    const content = randomBytes(100_000);
    const blob = { digest: sha256(content), size: content.length };
    await expect(registry.putBlob(blob, () => Readable.from([randomBytes(100_000)]))).rejects.toMatchObject({ code: "INTEGRITY" });
    const broken = async function* (): AsyncGenerator<Buffer> {
      yield content.subarray(0, 10);
      await Promise.resolve();
      throw new Error("the source broke off");
    };
    await expect(registry.putBlob(blob, () => Readable.from(broken()))).rejects.toThrow("the source broke off");
    expect(await registry.hasBlob(blob.digest)).toBe(false);
  });

  it("says that there is no such tag", async () => {
    await expect(open("9").manifest()).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it.runIf(password)("is not open to others", async () => {
    await expect(open("1.0", "wrong").manifest()).rejects.toMatchObject({ code: "UNAUTHORIZED" });
  });
});
