import { execFile } from "node:child_process";
import { randomBytes } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { NbdExport } from "../../../provider/synthesis/hydrate/nbdConnection.ts";
import { NbdServer } from "../../../provider/synthesis/hydrate/nbdServer.ts";
import { clientFlags, option, request, speaking } from "./nbdClient.ts";

const execute = promisify(execFile);
let directory: string;
let socketPath: string;
let server: NbdServer | undefined;

beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cloudlet-nbd-"));
  socketPath = join(directory, "nbd.sock");
});

afterEach(async () => {
  await server?.close();
  server = undefined;
  rmSync(directory, { recursive: true, force: true });
});

function exported(name: string, content: Buffer): NbdExport {
  return {
    name,
    bytes: content.length,
    read: (offset, length) => Promise.resolve(content.subarray(offset, offset + length)),
  };
}

const uri = (name: string): string => `nbd+unix:///${name}?socket=${socketPath}`;

describe("QEMU's own client", () => {
  it("reads the same bytes as are in the file", async () => {
    const content = randomBytes(3 * 1024 * 1024 + 512);
    writeFileSync(join(directory, "same.raw"), content);
    server = await NbdServer.listen(socketPath, [exported("disk", content), exported("memory", randomBytes(4096))]);
    const { stdout } = await execute("qemu-img", ["compare", "-f", "raw", "-F", "raw", join(directory, "same.raw"), uri("disk")]);
    expect(stdout).toContain("identical");
  });

  it("reads any place and any length, with several connections at once", async () => {
    const content = Buffer.alloc(1024 * 1024, 0);
    content.fill(7, 1001, 1001 + 77);
    server = await NbdServer.listen(socketPath, [exported("memory", content)]);
    const reading = ["-f", "raw", "-r", "-c", "read -P 7 1001 77", "-c", "read -P 0 0 1001", "-c", "read -P 0 1048575 1", uri("memory")];
    const outputs = await Promise.all([1, 2, 3].map(() => execute("qemu-io", reading)));
    for (const { stdout } of outputs) expect(stdout).not.toMatch(/fail|error/i);
  });

  it("is told that there is no such export", async () => {
    server = await NbdServer.listen(socketPath, [exported("disk", Buffer.alloc(512))]);
    await expect(execute("qemu-img", ["info", uri("memory")])).rejects.toThrow(/not available|unknown/i);
  });

  it("may not write", async () => {
    server = await NbdServer.listen(socketPath, [exported("disk", Buffer.alloc(4096))]);
    await expect(execute("qemu-io", ["-f", "raw", "-c", "write 0 512", uri("disk")])).rejects.toThrow(/read-only|permi/i);
  });
});

it("answers what it can while another read still waits", async () => {
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => (release = resolve));
  const content = Buffer.from("0123456789");
  server = await NbdServer.listen(socketPath, [
    {
      name: "disk",
      bytes: content.length,
      read: async (offset, length) => {
        if (offset === 0) await held;
        return content.subarray(offset, offset + length);
      },
    },
  ]);
  const { socket, take } = await speaking(socketPath);
  socket.write(Buffer.concat([clientFlags, option(1, Buffer.from("disk"))]));
  await take(10);
  socket.write(Buffer.concat([request({ handle: 1, offset: 0, length: 2 }), request({ handle: 2, offset: 4, length: 3 })]));
  const second = await take(16 + 3);
  expect([second.readUInt32BE(12), second.toString("latin1", 16)]).toEqual([2, "456"]);
  release();
  const first = await take(16 + 2);
  expect([first.readUInt32BE(12), first.toString("latin1", 16)]).toEqual([1, "01"]);
  socket.destroy();
});

it("refuses writes and reads behind the end, and goes on", async () => {
  server = await NbdServer.listen(socketPath, [exported("disk", Buffer.from("abcd"))]);
  const { socket, take } = await speaking(socketPath);
  socket.write(Buffer.concat([clientFlags, option(1, Buffer.from("disk"))]));
  await take(10);
  const errorOf = async (sent: Buffer): Promise<number> => {
    socket.write(sent);
    return (await take(16)).readUInt32BE(4);
  };
  expect(await errorOf(Buffer.concat([request({ command: 1, handle: 1, offset: 0, length: 3 }), Buffer.from("xyz")]))).toBe(1);
  expect(await errorOf(request({ handle: 2, offset: 2, length: 3 }))).toBe(22);
  expect(await errorOf(request({ handle: 3, offset: 2 ** 40, length: 1 }))).toBe(22);
  expect(await errorOf(request({ handle: 4, offset: 0, length: 2 ** 31 }))).toBe(22);
  expect(await errorOf(request({ handle: 5, offset: 0, length: 4 }))).toBe(0);
  expect(String(await take(4))).toBe("abcd");
  socket.destroy();
});

it("lists what it has, and does not know other options", async () => {
  server = await NbdServer.listen(socketPath, [exported("disk", Buffer.alloc(1)), exported("memory", Buffer.alloc(1))]);
  const { socket, take } = await speaking(socketPath);
  socket.write(Buffer.concat([clientFlags, option(8, Buffer.alloc(0)), option(3, Buffer.alloc(0)), option(2, Buffer.alloc(0))]));
  expect((await take(20)).readUInt32BE(12)).toBe(0x80000001);
  expect((await take(20 + 8)).toString("latin1", 24)).toBe("disk");
  expect((await take(20 + 10)).toString("latin1", 24)).toBe("memory");
  await take(20);
  expect((await take(20)).readUInt32BE(12)).toBe(1);
  await new Promise((resolve) => socket.once("close", resolve));
});

it("hangs up on what is not the protocol", async () => {
  server = await NbdServer.listen(socketPath, [exported("disk", Buffer.alloc(1))]);
  for (const nonsense of [Buffer.alloc(64, 0xff), Buffer.concat([clientFlags, Buffer.alloc(16)])]) {
    const { socket } = await speaking(socketPath);
    socket.write(nonsense);
    await new Promise((resolve) => socket.once("close", resolve));
  }
  expect(server.clients).toBe(0);
});

it("gives up a waiting read when its client goes, and all of them when it is closed", async () => {
  const ended: string[] = [];
  server = await NbdServer.listen(socketPath, [
    {
      name: "disk",
      bytes: 8,
      read: (offset, _length, signal) =>
        new Promise((_, reject) => {
          signal.addEventListener("abort", () => {
            ended.push(`read at ${String(offset)}`);
            reject(new Error("gone"));
          });
        }),
    },
  ]);
  const clients = await Promise.all([0, 4].map(async (offset) => ({ offset, ...(await speaking(socketPath)) })));
  for (const { offset, socket, take } of clients) {
    socket.write(Buffer.concat([clientFlags, option(1, Buffer.from("disk"))]));
    await take(10);
    socket.write(request({ handle: 1, offset, length: 1 }));
  }
  await expect.poll(() => server?.clients).toBe(2);
  clients[0]?.socket.destroy();
  await expect.poll(() => ended).toEqual(["read at 0"]);
  await server.close();
  await expect.poll(() => ended).toEqual(["read at 0", "read at 4"]);
});
