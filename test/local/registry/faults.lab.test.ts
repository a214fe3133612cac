import { createHash, createSign, randomBytes, randomUUID, X509Certificate } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { manifestType, pullArtefact, pushArtefact, type Layer } from "../../../provider/local/registry/artefact.ts";
import { parseReference } from "../../../provider/local/registry/reference.ts";
import { openRegistry, type Registry, type RegistryOptions } from "../../../provider/local/registry/registry.ts";
import { run } from "../../lab/run.ts";
import { openCable, openSilence } from "./cable.ts";
import { startRegistry, type RealRegistry } from "./realRegistry.ts";

const sha256 = (bytes: Buffer): string => `sha256:${createHash("sha256").update(bytes).digest("hex")}`;
const type = "application/vnd.cloudlet.test";
const anonymous = () => Promise.resolve(undefined);
const user = { user: "user", password: "secret" };

const at = (reference: string, options: Partial<RegistryOptions> = {}): Registry =>
  openRegistry(parseReference(reference), { signal: AbortSignal.timeout(120_000), credentials: anonymous, ...options });

function layerOf(bytes: Buffer): Layer {
  return { mediaType: `${type}.layer`, digest: sha256(bytes), size: bytes.length, stream: () => Readable.from(pieces(bytes)) };
}

function* pieces(bytes: Buffer): Generator<Buffer> {
  for (let offset = 0; offset < bytes.length; offset += 65_536) yield bytes.subarray(offset, offset + 65_536);
}

const push = (registry: Registry, layers: Buffer[]) =>
  pushArtefact(registry, { type, layers: layers.map(layerOf), annotations: { made: "here" } }, () => undefined);

const read = async (registry: Registry, bytes: Buffer): Promise<Buffer> => buffer(await registry.blob(layerOf(bytes)));

describe("a registry without a password", () => {
  let real: RealRegistry;
  beforeAll(async () => {
    real = await startRegistry();
  });
  afterAll(() => real.stop());

  it("gives back an artefact by tag and by digest, and takes nothing twice", async () => {
    const layers = [randomBytes(3_000_000), Buffer.from("small"), Buffer.alloc(0)];
    const { digest, bytesSent } = await push(at(`${real.address}/app/overlay:one`), layers);
    expect(bytesSent).toBe(3_000_007);
    const pulled = await pullArtefact(at(`${real.address}/app/overlay:one`), "amd64");
    expect(pulled).toMatchObject({ digest, type, annotations: { made: "here" } });
    expect(pulled.layers).toEqual(layers.map((bytes) => ({ mediaType: `${type}.layer`, digest: sha256(bytes), size: bytes.length })));
    for (const bytes of layers) expect((await read(at(`${real.address}/app/overlay:one`), bytes)).equals(bytes)).toBe(true);
    expect((await pullArtefact(at(`${real.address}/app/overlay@${digest}`), "amd64")).digest).toBe(digest);
    expect(await push(at(`${real.address}/app/overlay:two`), layers)).toEqual({ digest, bytesSent: 0 });
  });

  it("has of several platforms the one that is asked for, or says which there are", async () => {
    const manifests = [];
    for (const architecture of ["amd64", "arm64"]) {
      const one = at(`${real.address}/multi:${architecture}`);
      const { digest } = await push(one, [Buffer.from(architecture)]);
      const size = (await one.manifest()).content.length;
      manifests.push({ mediaType: manifestType, digest, size, platform: { os: "linux", architecture } });
    }
    const indexType = "application/vnd.oci.image.index.v1+json";
    const all = at(`${real.address}/multi:all`);
    await all.putManifest(indexType, Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: indexType, manifests })));
    expect((await pullArtefact(all, "arm64")).layers).toMatchObject([{ digest: sha256(Buffer.from("arm64")) }]);
    await expect(pullArtefact(all, "riscv64")).rejects.toMatchObject({
      code: "NOT_FOUND",
      message: expect.stringContaining("linux/amd64, linux/arm64"),
    });
  });

  it("is caught when it sends other bytes than those of the digest, or fewer, or more", async () => {
    const registry = at(`${real.address}/damaged:one`);
    const bytes = randomBytes(200_000);
    await push(registry, [bytes]);
    const flipped = Buffer.from(bytes);
    flipped[100_000] = (flipped[100_000] ?? 0) ^ 1;
    for (const wrong of [flipped, bytes.subarray(0, 1000), Buffer.concat([bytes, Buffer.from("more")])]) {
      await writeFile(storedAt(real, bytes), wrong);
      await expect(read(registry, bytes)).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringContaining(sha256(bytes)) });
    }
  });

  it("is caught when a manifest is not the one of its digest", async () => {
    const registry = at(`${real.address}/forged:one`);
    await push(registry, [Buffer.from("x")]);
    const { content, digest } = await registry.manifest();
    await writeFile(storedAt(real, content), content.toString().replace("here", "hare"));
    await expect(registry.manifest(digest)).rejects.toMatchObject({ code: "INTEGRITY" });
  });

  it("refuses a blob whose bytes are not those of its digest, and keeps nothing of it", async () => {
    const wrong = { digest: sha256(Buffer.from("another")), size: 10_000 };
    const put = at(`${real.address}/wrong:one`).putBlob(wrong, () => Readable.from([randomBytes(10_000)]));
    await expect(put).rejects.toMatchObject({ code: "INTEGRITY" });
    expect(await unfinished(real, "wrong")).toEqual([]);
  });

  it("gets anew what was interrupted on its way up", async () => {
    const bytes = randomBytes(12_000_000);
    const cable = await openCable(real.address, { sent: 5_000_000, times: 2 });
    await at(`${cable.address}/cut/up:one`).putBlob(layerOf(bytes), () => layerOf(bytes).stream());
    expect((await readFile(storedAt(real, bytes))).equals(bytes)).toBe(true);
    expect(cable.sent()).toBeGreaterThan(15_000_000);
    await cable.close();
  });

  it("goes on with what was interrupted on its way down", async () => {
    const bytes = randomBytes(12_000_000);
    await push(at(`${real.address}/cut/down:one`), [bytes]);
    const cable = await openCable(real.address, { received: 5_000_000, times: 2 });
    expect((await read(at(`${cable.address}/cut/down:one`), bytes)).equals(bytes)).toBe(true);
    expect(cable.received()).toBeLessThan(18_000_000);
    await cable.close();
  });

  it("is given up when each connection breaks, and when it is away", async () => {
    const bytes = randomBytes(2_000_000);
    const cable = await openCable(real.address, { sent: 100_000, times: 1_000 });
    const registry = at(`${cable.address}/away:one`);
    await expect(registry.putBlob(layerOf(bytes), () => layerOf(bytes).stream())).rejects.toMatchObject({ code: "UNREACHABLE" });
    await cable.close();
    await expect(registry.manifest()).rejects.toMatchObject({ code: "UNREACHABLE" });
  });

  it("keeps nothing of an upload that is cancelled", async () => {
    const cancel = new AbortController();
    const registry = at(`${real.address}/cancelled:one`, { signal: cancel.signal });
    const put = registry.putBlob(layerOf(randomBytes(1_000_000)), () => Readable.from(endless(() => cancel.abort())));
    await expect(put).rejects.toMatchObject({ code: "ABORTED" });
    expect(await unfinished(real, "cancelled")).toEqual([]);
  });
});

it("a registry that takes connections and says nothing is given up", async () => {
  const silence = await openSilence();
  const registry = at(`${silence.address}/app:one`, { silenceMillis: 300 });
  const expected = { code: "TIMEOUT", message: expect.stringContaining(silence.address) as string };
  await expect(registry.manifest()).rejects.toMatchObject(expected);
  await expect(registry.putBlob(layerOf(Buffer.from("x")), () => Readable.from(["x"]))).rejects.toMatchObject(expected);
  await silence.close();
});

it("a registry that stops in the middle of a blob is given up", async () => {
  const server = createServer((_, response) => void response.writeHead(200, { "content-length": "1000" }).write("some"));
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const registry = at(`127.0.0.1:${String((server.address() as AddressInfo).port)}/app:one`, { silenceMillis: 200 });
  await expect(read(registry, Buffer.alloc(1000))).rejects.toMatchObject({ code: "TIMEOUT" });
  server.closeAllConnections();
  server.close();
});

it("a registry with a token server gets one token for reading and one for writing", async () => {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-auth-"));
  const tokens = await openTokenServer(directory);
  const token = { realm: tokens.url, service: "test", issuer: "test", rootcertbundle: join(directory, "token.crt") };
  const real = await startRegistry({ auth: { token } });
  const registry = at(`${real.address}/team/app:one`, { credentials: () => Promise.resolve(user) });
  await push(registry, [randomBytes(100_000), randomBytes(10)]);
  expect((await pullArtefact(registry, "amd64")).layers).toHaveLength(2);
  // this registry names the actions of a scope in any order
  const inOrder = tokens.asked.map((scope) => scope.replace("push,pull", "pull,push"));
  expect(inOrder).toEqual(["repository:team/app:pull", "repository:team/app:pull,push"]);
  await expect(at(`${real.address}/team/app:one`).manifest()).rejects.toMatchObject({
    code: "UNAUTHORIZED",
    message: expect.stringContaining("401"),
  });
  await real.stop();
  tokens.close();
  await rm(directory, { recursive: true });
});

async function* endless(begun: () => void): AsyncGenerator<Buffer> {
  yield randomBytes(100_000);
  begun();
  await new Promise(() => undefined);
}

function storedAt(real: RealRegistry, bytes: Buffer): string {
  const digest = sha256(bytes).slice("sha256:".length);
  return join(real.directory, "docker/registry/v2/blobs/sha256", digest.slice(0, 2), digest, "data");
}

/** What is stored of uploads that were not finished. */
async function unfinished(real: RealRegistry, repository: string): Promise<string[]> {
  const folder = join(real.directory, "docker/registry/v2/repositories", repository, "_uploads");
  const found: string[] = await readdir(folder, { recursive: true }).catch(() => []);
  return found.filter((path) => path.endsWith("/data"));
}

/** What a registry's token server does: signed tokens for whoever knows the password. */
async function openTokenServer(directory: string): Promise<{ url: string; asked: string[]; close(): void }> {
  const [key, certificate] = [join(directory, "token.key"), join(directory, "token.crt")];
  await run([
    "openssl",
    "req",
    "-x509",
    "-newkey",
    "rsa:2048",
    "-nodes",
    "-days",
    "2",
    "-subj",
    "/CN=token",
    "-keyout",
    key,
    "-out",
    certificate,
  ]);
  const privateKey = await readFile(key, "utf8");
  const x5c = [new X509Certificate(await readFile(certificate)).raw.toString("base64")];
  const asked: string[] = [];
  const encode = (value: unknown): string => Buffer.from(JSON.stringify(value)).toString("base64url");
  const server = createServer((request, response) => {
    const scope = new URL(request.url ?? "", "http://token").searchParams.get("scope") ?? "";
    if (request.headers.authorization !== `Basic ${Buffer.from("user:secret").toString("base64")}`)
      return void response.writeHead(401).end();
    asked.push(scope);
    const [kind, name, actions = ""] = scope.split(":");
    const now = Math.floor(Date.now() / 1000);
    const claims = { iss: "test", aud: "test", sub: "user", jti: randomUUID(), iat: now, nbf: now - 5, exp: now + 300 };
    const text = `${encode({ typ: "JWT", alg: "RS256", x5c })}.${encode({ ...claims, access: [{ type: kind, name, actions: actions.split(",") }] })}`;
    const signature = createSign("RSA-SHA256").update(text).sign(privateKey).toString("base64url");
    response.end(JSON.stringify({ token: `${text}.${signature}` }));
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${String((server.address() as AddressInfo).port)}/token`, asked, close: () => server.close() };
}
