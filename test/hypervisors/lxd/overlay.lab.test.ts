import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { Provision } from "../../../provider/agent/protocol.ts";
import { parseReference } from "../../../provider/local/registry/reference.ts";
import { openRegistry } from "../../../provider/local/registry/registry.ts";
import { openGateways, type Gateways } from "../../gateways.ts";
import { run } from "../../lab/run.ts";
import { startRegistry, type RealRegistry } from "../../local/registry/realRegistry.ts";

let directory: string;
let registry: RealRegistry;
let gateways: Gateways;
beforeAll(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-lxd-overlay-"));
  process.env["XDG_CACHE_HOME"] = join(directory, "cache");
  registry = await startRegistry();
  gateways = await openGateways("lxdover", { lxd: ["gw1"] });
  await pushContainer(`${registry.address}/counter:one`, gateways.images.container);
});
afterAll(async () => {
  await gateways?.stack.destroy();
  await gateways?.close();
  await registry?.stop();
  await rm(directory, { recursive: true, force: true });
});

/** The image's root file system as a container image of one layer. */
async function pushContainer(reference: string, image: string): Promise<void> {
  const layerPath = join(directory, "layer.tar.gz");
  const unpack = `mkdir "$1" && tar -C "$1" -xzf "$2" && tar -C "$1/rootfs" --numeric-owner -czf "$3" .`;
  await run(["sh", "-c", unpack, "sh", join(directory, "image"), image, layerPath]);
  const signal = AbortSignal.timeout(60_000);
  const target = openRegistry(parseReference(reference), { signal, credentials: () => Promise.resolve(undefined) });
  const put = async (mediaType: string, content: Buffer) => {
    const descriptor = { mediaType, digest: `sha256:${createHash("sha256").update(content).digest("hex")}`, size: content.length };
    await target.putBlob(descriptor, () => Readable.from([content]));
    return descriptor;
  };
  const layers = [await put("application/vnd.oci.image.layer.v1.tar+gzip", await readFile(layerPath))];
  const config = await put("application/vnd.oci.image.config.v1+json", Buffer.from("{}"));
  const mediaType = "application/vnd.oci.image.manifest.v1+json";
  await target.putManifest(mediaType, Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType, config, layers })));
}

const script = "echo installed >/etc/installed; ln /etc/installed /etc/again; chmod 4750 /etc/installed; rm -r /etc/group";

const program: PulumiFn = async () => {
  const { sdk, lab } = gateways;
  const { host, privateKey, hostKey, user } = lab.hosts.gw1.connection;
  const hypervisor = new sdk.Hypervisor("lxd-gw1", {
    node: new sdk.Node("gw1", { connection: { host, privateKey, hostKey, user } }),
    kind: "lxd",
  });
  const base = new sdk.BaseImage("counter-base", { image: `${registry.address}/counter:one`, nodes: [hypervisor] });
  const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 };
  const overlay = new sdk.Overlay("counter", { base, builder: hypervisor, resources: { memoryMib: 128 }, script, ready });
  const cluster = new sdk.EdgeCluster("visits", { application: "visit-counter" });
  const [first, second] = [8080, 8081].map(
    (hostPort) => new sdk.Cloudlet(`at-${hostPort}`, { cluster, hypervisor, base, overlay, ports: [{ port: 8080, hostPort }], ready }),
  );
  return { provisions: [first?.provision, second?.provision], format: base.format, bytes: overlay.bytes };
};

it("containers start from a base of a registry and an overlay that was built in one, and are as it was", async () => {
  const made = await gateways.stack.up(program);
  expect(made, made.text).toMatchObject({ ok: true });
  expect(made.outputs["format"]).toBe("tar");
  const provisions = made.outputs["provisions"] as Provision[];
  for (const provision of provisions) expect(provision).toMatchObject({ rung: "boot", verified: true, bytesTransferred: 0 });
  console.table(provisions.map((provision) => ({ ...provision, overlayBytes: made.outputs["bytes"] as number })));
  for (const port of [8080, 8081]) expect(await gateways.peek("gw1", port)).toBeTypeOf("number");
  const { gw1 } = gateways.lab.hosts;
  const names = (await gw1.run("lxc list -f csv -c n")).trim().split("\n");
  expect(names).toHaveLength(2);
  for (const name of names) {
    const look = "stat -c '%a %h %u' /etc/again; cat /etc/installed; ls /etc/group 2>&1 | grep -c 'No such'";
    expect(await gw1.run(`lxc exec ${name} -- sh -c ${JSON.stringify(look)}`)).toBe("4750 2 0\ninstalled\n1\n");
  }
  // both were made from one image, and the build's own is gone
  expect(await gw1.run("lxc image list -f csv -c f | wc -l")).toBe("1\n");
});

it("nothing changes when the same program runs again, and nothing is left when it is destroyed", async () => {
  const again = await gateways.stack.up(program);
  expect(
    again.steps.filter(({ op }) => op !== "same").map(({ op, name }) => `${op} ${name}`),
    again.text,
  ).toEqual([]);
  const gone = await gateways.stack.destroy();
  expect(gone, gone.text).toMatchObject({ ok: true });
  expect(await gateways.lab.hosts.gw1.run("ls -A /var/lib/cloudlet 2>/dev/null; true")).toBe("");
});
