/**
 * Measures how much memory provider and agents need while they place an image of 4 GiB on two gateways, build an overlay
 * over it on one of them and start from it on the other. Real QEMU on lab hosts; needs root. Fails above the bound.
 */
import { randomFillSync } from "node:crypto";
import { closeSync, mkdtempSync, openSync, rmSync, statSync, truncateSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { openGateways } from "../gateways.ts";
import type { Gateways } from "../gateways.ts";
import { hostOf, isOurs, watchPeaks } from "../lab/peak.ts";
import { run } from "../lab/run.ts";

const mib = 1024 ** 2;
const diskMib = 4096;
/** That no compressor makes smaller. */
const dataMib = 1536;
const boundBytes = 300e6;
const bounded = ["provider", "gw1: agent.js serve", "gw2: agent.js serve", "gw2: agent.js hydrate"];

await main();

async function main(): Promise<void> {
  const gateways = await openGateways("bounded");
  const directory = mkdtempSync(join(tmpdir(), "cloudlet-bounded-"));
  try {
    const image = await makeImage(gateways.images.vm, directory);
    const peaks = watchPeaks(({ pid, command }) => nameOf(gateways, pid, command));
    const began = Date.now();
    const outcome = await gateways.stack.up(() => declare(gateways, image));
    const most = peaks.stop();
    if (!outcome.ok) throw new Error(outcome.text);
    console.log(`image of ${String(Math.round(statSync(image).size / mib))} MiB, ${String(Math.round((Date.now() - began) / 1000))} s`);
    console.log(outcome.outputs["provision"]);
    for (const [name, peak] of [...most].sort()) console.log(`${name.padEnd(28)} ${String(peak).padStart(5)} MiB`);
    const over = bounded.filter((name) => !((most.get(name) ?? Infinity) * mib < boundBytes));
    if (over.length > 0) {
      console.log(`more than ${String(boundBytes / 1e6)} MB, or never seen: ${over.join(", ")}`);
      process.exitCode = 1;
    }
  } finally {
    await gateways.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

async function makeImage(from: string, directory: string): Promise<string> {
  const [raw, image] = [join(directory, "large.raw"), join(directory, "large.qcow2")];
  await run(["qemu-img", "convert", "-O", "raw", from, raw]);
  truncateSync(raw, diskMib * mib);
  const file = openSync(raw, "r+");
  const piece = Buffer.alloc(16 * mib);
  for (let at = 0; at < dataMib; at += 16) writeSync(file, randomFillSync(piece), 0, piece.length, (1024 + at) * mib);
  closeSync(file);
  await run(["qemu-img", "convert", "-O", "qcow2", raw, image], { timeoutMillis: 300_000 });
  rmSync(raw);
  return image;
}

function nameOf(gateways: Gateways, pid: number, command: string): string | undefined {
  if (command.includes("dynamic-provider")) return isOurs(pid) ? "provider" : undefined;
  const program = /qemu-system|qemu-storage-daemon|qemu-img|zstd|sshd|agent\.js \w+/.exec(command)?.[0];
  const host = program === undefined ? undefined : hostOf(pid, gateways.lab.hosts);
  return program !== undefined && host !== undefined ? `${host}: ${program}` : undefined;
}

async function declare(gateways: Gateways, image: string): Promise<Record<string, unknown>> {
  const { BaseImage, Cloudlet, EdgeCluster, Hypervisor, Node, Overlay } = gateways.sdk;
  const hypervisor = (name: "gw1" | "gw2"): InstanceType<typeof Hypervisor> => {
    const { host, privateKey, hostKey, user } = gateways.lab.hosts[name].connection;
    return new Hypervisor(`kvm-${name}`, { node: new Node(name, { connection: { host, privateKey, hostKey, user } }), kind: "kvm" });
  };
  const [kvm1, kvm2] = [hypervisor("gw1"), hypervisor("gw2")];
  const base = new BaseImage("large", { file: image, nodes: [kvm1, kvm2] });
  const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 300 };
  const resources = { memoryMib: 256, diskMib };
  const script = "mkdir -p /opt && dd if=/dev/urandom of=/opt/data bs=1M count=32 2>/dev/null && sync";
  const overlay = new Overlay("app", { base, builder: kvm1, script, resources, ready });
  const cluster = new EdgeCluster("visits", { application: "visit-counter" });
  const cloudlet = new Cloudlet("counter", { cluster, hypervisor: kvm2, base, overlay, ports: [{ port: 8080 }], ready });
  return await Promise.resolve({ provision: cloudlet.provision });
}
