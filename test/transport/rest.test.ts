import { execFile } from "node:child_process";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { createServer, type Server } from "node:https";
import type { AddressInfo } from "node:net";
import type { TLSSocket } from "node:tls";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { text } from "node:stream/consumers";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { requestJson } from "../../provider/transport/requestJson.ts";
import { restOverHttps } from "../../provider/transport/rest.ts";
import type { Rest } from "../../provider/transport/types.ts";

const execute = promisify(execFile);

describe("REST over HTTPS", () => {
  let directory: string;
  let server: Server;
  let address: string;
  let received = 0;
  /** For each answer that ended: whether all of it was taken. */
  const given: boolean[] = [];
  const pem = (name: string): Promise<string> => readFile(join(directory, name), "utf8");

  beforeAll(async () => {
    directory = await mkdtemp(join(tmpdir(), "cloudlet-rest-"));
    for (const name of ["server", "client", "other"]) {
      const files = ["-keyout", join(directory, `${name}.key`), "-out", join(directory, `${name}.crt`)];
      await execute("openssl", [
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        `/CN=${name}`,
        ...files,
      ]);
    }
    server = createServer(
      { key: await pem("server.key"), cert: await pem("server.crt"), requestCert: true, rejectUnauthorized: false },
      (request, response) => {
        received += 1;
        if (request.url === "/silent") return;
        if (request.url === "/stuck") return void response.write("some");
        if (request.url === "/large") {
          response.once("close", () => given.push(response.writableFinished));
          return void response.end(Buffer.alloc(50_000_000));
        }
        response.statusCode = request.url === "/missing" ? 404 : 200;
        const name = (request.socket as TLSSocket).getPeerCertificate().subject.CN;
        response.end(request.url === "/text" ? "no json" : JSON.stringify({ name }));
      },
    );
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    address = `https://127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  });

  afterAll(async () => {
    server.closeAllConnections();
    server.close();
    await rm(directory, { recursive: true, force: true });
  });

  async function open(serverCertificate: string): Promise<Rest> {
    return restOverHttps({
      address,
      clientCertificate: await pem("client.crt"),
      clientKey: await pem("client.key"),
      serverCertificate,
      label: "LXD on gw1",
    });
  }

  it("shows the client certificate to a server pinned by PEM or by fingerprint", async () => {
    const { stdout } = await execute("openssl", ["x509", "-in", join(directory, "server.crt"), "-noout", "-fingerprint", "-sha256"]);
    const fingerprint = stdout.trim().replace(/^.*=/, "");
    for (const pin of [await pem("server.crt"), fingerprint, fingerprint.replaceAll(":", "").toLowerCase()]) {
      const rest = await open(pin);
      expect(await requestJson(rest, z.object({ name: z.string() }), { method: "GET", path: "/" })).toEqual({
        status: 200,
        value: { name: "client" },
      });
      await rest.close();
    }
  });

  it("sends nothing to a server with another certificate, and prints both fingerprints", async () => {
    const before = received;
    const rest = await open(await pem("other.crt"));
    await expect(rest.request({ method: "GET", path: "/" })).rejects.toMatchObject({
      code: "HOST_KEY",
      message: expect.stringMatching(/LXD on gw1.*[0-9a-f]{64}.*[0-9a-f]{64}/) as string,
    });
    expect(received).toBe(before);
    await rest.close();
  });

  it("refuses a pin that is neither with INVALID", async () => {
    await expect(open("nonsense")).rejects.toMatchObject({ code: "INVALID" });
  });

  it("hands over any status, and ends by deadline or cancellation, before the headers and within the body", async () => {
    const rest = await open(await pem("server.crt"));
    expect((await rest.request({ method: "GET", path: "/missing" })).status).toBe(404);
    await expect(rest.request({ method: "GET", path: "/silent", timeoutMillis: 200 })).rejects.toMatchObject({
      code: "TIMEOUT",
      message: expect.stringContaining("GET /silent to LXD on gw1") as string,
    });
    await expect(rest.request({ method: "GET", path: "/silent", signal: AbortSignal.timeout(100) })).rejects.toMatchObject({
      code: "ABORTED",
    });
    const stuck = await rest.request({ method: "GET", path: "/stuck", timeoutMillis: 300 });
    await expect(text(stuck.body)).rejects.toMatchObject({ code: "TIMEOUT" });
    await rest.close();
  });

  it("lets go of an answer that is given up before any of it was read", async () => {
    const rest = await open(await pem("server.crt"));
    const { body } = await rest.request({ method: "GET", path: "/large", timeoutMillis: 60_000 });
    body.destroy();
    await expect.poll(() => given, { timeout: 5_000 }).toEqual([false]);
    await rest.close();
  });

  it("names thing and path where an answer does not fit", async () => {
    const rest = await open(await pem("server.crt"));
    for (const path of ["/text?secret=canary", "/"]) {
      const wrong = requestJson(rest, z.object({ version: z.number() }), { method: "GET", path });
      await expect(wrong).rejects.toMatchObject({
        code: "UNSUPPORTED",
        message: expect.stringMatching(/LXD on gw1 to GET \/(text)? \(status 200\)/) as string,
      });
      await expect(wrong).rejects.not.toMatchObject({ message: expect.stringContaining("canary") as string });
    }
    await rest.close();
  });

  it("says UNREACHABLE where nobody listens", async () => {
    const rest = restOverHttps({
      address: "https://127.0.0.1:1",
      clientCertificate: await pem("client.crt"),
      clientKey: await pem("client.key"),
      serverCertificate: await pem("server.crt"),
      label: "LXD on gw1",
    });
    await expect(rest.request({ method: "GET", path: "/" })).rejects.toMatchObject({ code: "UNREACHABLE" });
    await rest.close();
  });
});
