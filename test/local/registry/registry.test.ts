import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { afterEach, expect, it } from "vitest";
import { parseReference } from "../../../provider/local/registry/reference.ts";
import { openRegistry, type Registry } from "../../../provider/local/registry/registry.ts";

let server: Server | undefined;
afterEach(() => new Promise<void>((resolve) => (server ? server.close(() => resolve()) : resolve())));

/** A server that is not a registry, to see what is asked of it and what becomes of its answers. */
async function answering(answer: (request: IncomingMessage, response: ServerResponse) => void): Promise<Registry> {
  server = createServer(answer);
  await new Promise<void>((resolve) => server?.listen(0, "127.0.0.1", resolve));
  const { port } = server.address() as AddressInfo;
  return openRegistry(parseReference(`127.0.0.1:${String(port)}/team/faces:1`), {
    signal: AbortSignal.timeout(5_000),
    credentials: () => Promise.resolve({ user: "me", password: "secret" }),
  });
}

it("fetches a token where the registry says so, with the password, and uses it from then on", async () => {
  const seen: string[] = [];
  const registry = await answering((request, response) => {
    const { url = "", headers } = request;
    seen.push(`${url} ${headers.authorization ?? "-"}`);
    if (url.startsWith("/token")) return response.end(JSON.stringify({ token: "t" }));
    if (headers.authorization === "Bearer t") return response.writeHead(200).end();
    const realm = `http://${headers.host ?? ""}/token`;
    response.writeHead(401, { "www-authenticate": `Bearer realm="${realm}",service="s",scope="repository:team/faces:pull"` }).end();
  });
  expect(await registry.hasBlob(`sha256:${"0".repeat(64)}`)).toBe(true);
  expect(await registry.hasBlob(`sha256:${"0".repeat(64)}`)).toBe(true);
  expect(seen.map((line) => line.replace(/0{64}/, "…"))).toEqual([
    "/v2/team/faces/blobs/sha256:… -",
    "/token?service=s&scope=repository%3Ateam%2Ffaces%3Apull Basic bWU6c2VjcmV0",
    "/v2/team/faces/blobs/sha256:… Bearer t",
    "/v2/team/faces/blobs/sha256:… Bearer t",
  ]);
});

it("says what to do when the password is wrong", async () => {
  const registry = await answering((_, response) => response.writeHead(401, { "www-authenticate": "Basic" }).end());
  await expect(registry.hasBlob(`sha256:${"0".repeat(64)}`)).rejects.toMatchObject({
    code: "UNAUTHORIZED",
    fix: expect.stringMatching(/^run `docker login 127/) as string,
  });
});

it.each(["other", "shorter than announced", "x"])("refuses a blob with the wrong bytes: %s", async (body) => {
  const registry = await answering((_, response) => response.writeHead(200).end(body));
  const stream = await registry.blob({ digest: `sha256:${"0".repeat(64)}`, size: 5 });
  await expect(stream.resume().toArray()).rejects.toMatchObject({ code: "INTEGRITY" });
});

it("refuses a manifest that is not what the registry announced, or has no end", async () => {
  const wrong = await answering((_, response) =>
    response.writeHead(200, { "docker-content-digest": `sha256:${"0".repeat(64)}` }).end("{}"),
  );
  await expect(wrong.manifest()).rejects.toMatchObject({ code: "INTEGRITY" });
  await new Promise((resolve) => server?.close(resolve));
  const endless = await answering((_, response) => response.writeHead(200).end(Buffer.alloc(5 * 1024 * 1024)));
  await expect(endless.manifest()).rejects.toMatchObject({ code: "INVALID" });
});

it("gives the registry's own words", async () => {
  const registry = await answering((_, response) =>
    response.writeHead(404).end(JSON.stringify({ errors: [{ code: "MANIFEST_UNKNOWN", message: "manifest unknown" }] })),
  );
  await expect(registry.manifest()).rejects.toMatchObject({
    code: "NOT_FOUND",
    message: expect.stringContaining("manifest unknown") as string,
  });
});

it("names a registry that does not answer", async () => {
  const registry = openRegistry(parseReference("127.0.0.1:1/a"), { signal: AbortSignal.timeout(5_000) });
  await expect(registry.manifest()).rejects.toMatchObject({
    code: "UNREACHABLE",
    message: expect.stringContaining("127.0.0.1:1") as string,
  });
});
