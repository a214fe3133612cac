import { createServer as createPlain, type AddressInfo, type Server } from "node:net";
import { createServer } from "node:tls";
import { afterEach, expect, it } from "vitest";
import { dialPinned } from "../../provider/agent/pinnedTls.ts";
import { newCertificate } from "./certificate.ts";

const { key, cert, digest } = newCertificate();
const servers: Server[] = [];

afterEach(() => {
  for (const server of servers.splice(0)) server.close();
});

async function listening(server: Server): Promise<number> {
  servers.push(server);
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as AddressInfo).port;
}

it("talks to the node whose certificate is pinned", async () => {
  const port = await listening(createServer({ key, cert }, (socket) => socket.end("here")));
  const socket = await dialPinned({ node: "gw1", certificate: digest }, "127.0.0.1", port);
  const [said] = await socket.toArray();
  expect(String(said)).toBe("here");
});

it("names the node whose certificate is another one, and tells it nothing", async () => {
  let heard = 0;
  const port = await listening(createServer({ key, cert }, (socket) => socket.on("data", (data) => (heard += data.length)).resume()));
  await expect(dialPinned({ node: "gw1", certificate: "0".repeat(64) }, "127.0.0.1", port)).rejects.toMatchObject({
    code: "HOST_KEY",
    message: expect.stringContaining("gw1") as string,
  });
  expect(heard).toBe(0);
});

it("does not wait for one that hangs up", async () => {
  const port = await listening(createPlain((socket) => socket.destroy()));
  await expect(dialPinned({ node: "gw1", certificate: digest }, "127.0.0.1", port)).rejects.toThrow();
});
