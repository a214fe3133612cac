import { spawn } from "node:child_process";
import { createReadStream } from "node:fs";
import { cp, mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { Readable } from "node:stream";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { AgentClient } from "../../provider/agent/clientTypes.ts";
import { nodeSource } from "../../provider/cli/node.ts";
import { writeArchive } from "../../provider/local/overlays/archive.ts";
import { openContext } from "../../provider/runtime.ts";
import { seal } from "../../provider/synthesis/seal.ts";
import { openGateways, type GatewayName, type Gateways } from "../gateways.ts";
import { tryRun, type RunResult } from "../lab/run.ts";
import { bytesOf, digestOf, sourceOf, watch } from "../local/overlays/sample.ts";
import { startRegistry, type RealRegistry } from "../local/registry/realRegistry.ts";
import { makeWorld } from "../synthesis/makeImages.ts";

const node = resolve(import.meta.dirname, "../../node_modules/.bin/node");
const program = resolve(import.meta.dirname, "../../dist/cli.js");

let gateways: Gateways;
let registry: RealRegistry;
let folder: string;
let base: Buffer;
let digest: string;
const file = (name: string): string => join(folder, name);

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-cli-"));
  registry = await startRegistry();
  gateways = await openGateways("gcli");
  const { lab } = gateways;
  // whoever runs the command: a home with a key, and known hosts
  await mkdir(file("home/.ssh"), { recursive: true });
  await cp(lab.knownHostsPath, file("home/.ssh/known_hosts"));
  await writeFile(file("home/.ssh/config"), `IdentityFile ${lab.keyPath}\n`);
  await gateways.up({ gateways: { gw1: { kind: "kvm" }, gw2: { kind: "kvm" } } });
  // an overlay as if it had been built on gateway 1
  const world = await makeWorld(file("world"));
  const below = world.input.disk?.below ?? "";
  base = await readFile(below);
  // a raw disk is known by its boot sector
  base.writeUInt16BE(0x55aa, 510);
  await writeFile(below, base);
  const { machine: _, ...input } = world.input;
  const sealed = await seal({ ...input, base: digestOf(base) }, watch);
  digest = sealed.digest;
  const agent = await agentOf("gw1");
  await agent.putBlob({ digest: digestOf(base), bytes: base.length, stream: () => Readable.from([base]) });
  for (const blob of sealed.blobs) await agent.putBlob({ ...blob, stream: () => createReadStream(blob.path) });
  await agent.run("image.keep", { name: "base", owner: "faces/dev", digest: digestOf(base) });
  await agent.run("overlay.keep", { name: "server", owner: "faces/dev", digest });
});
afterAll(async () => {
  await gateways.close();
  await registry.stop();
  await rm(folder, { recursive: true });
});

function agentOf(gateway: GatewayName): Promise<AgentClient> {
  return openContext({ status: () => undefined, warn: () => undefined }).agent(gateways.lab.hosts[gateway].connection);
}

function cloudlet(...args: string[]): Promise<RunResult> {
  const { SSH_AUTH_SOCK: _, ...rest } = process.env;
  return tryRun([node, program, "overlay", ...args], { env: { ...rest, HOME: file("home") }, timeoutMillis: 120_000 });
}

const at = (gateway: GatewayName): string => `--node=root@${gateways.lab.hosts[gateway].address}:22`;

/** Everything that a gateway has on account of overlays. */
async function kept(gateway: GatewayName): Promise<string[]> {
  const { stdout } = await gateways.lab.hosts[gateway].exec([
    "sh",
    "-c",
    "cd /var/lib/cloudlet; find store layers kept -type f | grep -v verified | sort",
  ]);
  return stdout.split("\n").filter(Boolean);
}

it("lists what a node keeps", async () => {
  const { exitCode, stdout } = await cloudlet("list", at("gw1"));
  expect(exitCode).toBe(0);
  expect(stdout).toMatch(new RegExp(`^${digest.slice(0, 12)}  kvm .* server of faces/dev$`, "m"));
});

it("refuses a host whose key is not known", async () => {
  await writeFile(file("home/.ssh/known_hosts"), "");
  const { exitCode, stderr } = await cloudlet("list", at("gw1"));
  await cp(gateways.lab.knownHostsPath, file("home/.ssh/known_hosts"));
  expect(exitCode).toBe(1);
  expect(stderr).toMatch(/\[HOST_KEY\]\n$/);
});

it("refuses an overlay whose base the node does not have, and leaves nothing there", async () => {
  const before = await kept("gw2");
  expect(await cloudlet("export", digest, at("gw1"), "--output", file("alone.tar"))).toMatchObject({ exitCode: 0 });
  const { exitCode, stderr } = await cloudlet("import", file("alone.tar"), at("gw2"));
  expect({ exitCode, stderr }).toEqual({ exitCode: 1, stderr: expect.stringMatching(/needs its base image .*\[REFUSED\]\n$/) as string });
  expect(await kept("gw2")).toEqual(before);
});

it("brings an overlay from gateway to gateway by a file: same digest, same file when exported there", async () => {
  expect(await cloudlet("export", digest, at("gw1"), "--output", file("faces.tar"), "--with-base")).toMatchObject({ exitCode: 0 });
  const brought = await cloudlet("import", file("faces.tar"), at("gw2"));
  expect(brought).toMatchObject({ exitCode: 0, stdout: expect.stringContaining(`${digest} is on `) as string });
  expect((await (await agentOf("gw2")).overlays()).map((it) => it.digest)).toEqual([digest]);
  expect(await cloudlet("export", digest.slice(0, 8), at("gw2"), "--output", file("again.tar"), "--with-base")).toMatchObject({
    exitCode: 0,
  });
  expect((await readFile(file("again.tar"))).equals(await readFile(file("faces.tar")))).toBe(true);
  expect(await cloudlet("verify", digest, at("gw2"))).toMatchObject({ exitCode: 0, stdout: expect.stringContaining("is whole") as string });
});

it("removes what it has brought, and nothing that a program declares", async () => {
  expect(await cloudlet("remove", digest, at("gw2"))).toMatchObject({ exitCode: 0 });
  expect(await (await agentOf("gw2")).overlays()).toEqual([]);
  expect(await cloudlet("remove", digest, at("gw1"))).toMatchObject({
    exitCode: 1,
    stderr: expect.stringMatching(/\[REFUSED\]\n$/) as string,
  });
});

it("brings an overlay from gateway to gateway through a registry", async () => {
  const place = `${registry.address}/edge/faces:1.4`;
  const pushed = await cloudlet("push", digest, place, at("gw1"), "--with-base");
  expect(pushed).toMatchObject({ exitCode: 0, stdout: expect.stringContaining(`${place}@sha256:`) as string });
  expect(await cloudlet("pull", place, at("gw2"))).toMatchObject({ exitCode: 0, stdout: expect.stringContaining(digest) as string });
  expect((await (await agentOf("gw2")).overlays()).map((it) => it.digest)).toEqual([digest]);
  await cloudlet("remove", digest, at("gw2"));
});

it("refuses an overlay that recombines to something else than was sealed, and the node keeps nothing of it", async () => {
  const agent = await agentOf("gw1");
  const source = await nodeSource(agent, { digest, withBase: true }, watch);
  const contents = Object.fromEntries(
    await Promise.all(source.parts.map(async (part) => [part.name, await bytesOf(await source.read(part))] as const)),
  );
  const manifest = JSON.parse(contents["manifest.json"]?.toString() ?? "") as { disk: { digest: string } };
  // sealed anew, so that every digest on the way is right: only what comes out is not what was promised
  const lying = { ...manifest, disk: { ...manifest.disk, digest: "0".repeat(64) } };
  await writeArchive(file("lying.tar"), sourceOf({ ...contents, "manifest.json": Buffer.from(JSON.stringify(lying)) }), watch);
  const before = await kept("gw2");
  const { exitCode, stderr } = await cloudlet("import", file("lying.tar"), at("gw2"));
  expect(exitCode).toBe(1);
  expect(stderr).toMatch(/disk.*\[INTEGRITY\]\n$/);
  expect(await kept("gw2")).toEqual(before);
});

it("leaves no file behind when it is interrupted", async () => {
  await gateways.lab.shape("gw1", { mbit: 2 });
  await mkdir(file("interrupted"));
  const { SSH_AUTH_SOCK: _, ...rest } = process.env;
  const args = [program, "overlay", "export", digest, at("gw1"), "--output", file("interrupted/faces.tar"), "--with-base"];
  const child = spawn(node, args, { env: { ...rest, HOME: file("home") }, stdio: ["ignore", "ignore", "pipe"] });
  child.stderr.on("data", (text: Buffer) => {
    if (text.includes("pack:")) setTimeout(() => child.kill("SIGINT"), 200);
  });
  const code = await new Promise((done) => child.on("close", done));
  await gateways.lab.shape("gw1", {});
  expect(code).toBe(130);
  expect(await readdir(file("interrupted"))).toEqual([]);
});
