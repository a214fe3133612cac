import { once } from "node:events";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setImmediate, setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach, expect, it } from "vitest";
import { questionFor, serveRanges } from "../../provider/agent/ranges.ts";

const fileBytes = 16 * 1024 * 1024;

let directory: string;
let server: Server;
beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-ranges-"));
  await writeFile(join(directory, "blob"), Buffer.alloc(fileBytes, 7));
  server = createServer({ pauseOnConnect: true });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
});
afterEach(async () => {
  await new Promise((resolve) => server.close(resolve));
  await rm(directory, { recursive: true });
});

async function connection(): Promise<{ near: Socket; far: Socket }> {
  const far = connect((server.address() as AddressInfo).port, "127.0.0.1");
  const [near] = (await once(server, "connection")) as [Socket];
  return { near, far };
}

it("leaves nothing on a connection that has to wait for the link again and again", async () => {
  const { near, far } = await connection();
  const serving = serveRanges(near, Buffer.alloc(0), join(directory, "blob"));
  far.write(questionFor({ offset: 0, bytes: fileBytes }));
  let most = 0;
  let got = 0;
  for await (const chunk of far as AsyncIterable<Buffer>) {
    got += chunk.length;
    await sleep(1);
    most = Math.max(most, near.listenerCount("close"), near.listenerCount("error"));
    if (got >= fileBytes) break;
  }
  await serving;
  expect(most).toBeLessThan(6);
});

it("ends where the connection ends, at any moment", async () => {
  for (let after = 0; after < 60; after++) {
    const { near, far } = await connection();
    const serving = serveRanges(near, Buffer.alloc(0), join(directory, "blob"));
    far.write(questionFor({ offset: 0, bytes: fileBytes }));
    far.on("error", () => undefined).resume();
    await once(far, "data");
    for (let turn = 0; turn < after; turn++) await setImmediate();
    near.destroy();
    await serving;
    far.destroy();
  }
});
