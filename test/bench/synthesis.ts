import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { AgentClient } from "../../provider/agent/clientTypes.ts";
import { guestName, type InstanceSpec, type OverlayStatus, type Provision } from "../../provider/agent/protocol.ts";
import { type ImageName, imageNames } from "../../provider/synthesis/layerFiles.ts";
import { type Manifest, manifestSchema } from "../../provider/synthesis/manifest.ts";
import { readOverlay } from "../../provider/synthesis/overlay.ts";
import { qcow2Layout } from "../../provider/synthesis/qcow2Layout.ts";
import { chart, linkName, localStarts, overlayRow, page } from "./synthesisPage.ts";
import { SynthesisResults, type Cell } from "./synthesisResults.ts";
import { firstReply } from "./subscriber.ts";
import { TwoGateways, type Hosts } from "./twoGateways.ts";
import { applications, guestResources, workload, type Application } from "./workload.ts";

const help = `Measures how fast a cloudlet starts on a gateway from an overlay, beside what one does without: copy the whole
image and boot, or copy the whole state and resume. Real QEMU on lab hosts; needs root.

  make bench-synthesis [ARGS="--overlays idle,OBJECT --links 5,25,0 --copies 25"]

What is measured replaces what the report had of it; the rest stays.

  --overlays    ${Object.keys(applications).join(", ")} (default: all)
  --links       Mbit/s, 0 = as fast as it goes (default: 5,10,25,38,100,0)
  --copies      Mbit/s at which the two copies are measured as well (default: 5,10,25,38,100,0; none: "")
  --out         directory of the report (default: docs/benchmarks)`;

const { values } = parseArgs({
  options: {
    overlays: { type: "string", default: Object.keys(applications).join(",") },
    links: { type: "string", default: "5,10,25,38,100,0" },
    copies: { type: "string", default: "5,10,25,38,100,0" },
    out: { type: "string", default: join(import.meta.dirname, "../../docs/benchmarks") },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}
const chosen = values.overlays.split(",").filter((name): name is Application => name in applications);
const linksOf = (text: string): number[] => (text === "" ? [] : text.split(",").map(Number));
const links = linksOf(values.links);
const copyLinks = linksOf(values.copies);

type Bench = TwoGateways["bench"];
const owner = "benchmarks/synthesis";
const cloudlet = "bench/application";

function fail(reason: string): never {
  throw new Error(reason);
}

const floorOf = (bytes: number, mbit: number): number => (mbit === 0 ? 0 : (bytes * 8) / (mbit * 1e6));

function specOf(base: string, overlay: OverlayStatus | undefined): InstanceSpec {
  return {
    id: cloudlet,
    owner,
    kind: "kvm",
    state: "running",
    base: { digest: base },
    resources: guestResources,
    ports: [{ port: 8080, hostPort: 8080, protocol: "tcp" }],
    files: [],
    environment: {},
    volumes: [],
    stateFiles: [],
    ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 600 },
    ...(overlay && { overlay: { digest: overlay.digest }, hydrate: { timeoutSeconds: 3600, onTimeout: "wait" as const } }),
  };
}

interface Nodes {
  bench: Bench;
  gw1: AgentClient;
  gw2: AgentClient;
  base: string;
  memory: OverlayStatus;
}

/** Starts the cloudlet on gateway 2 and measures from outside; then removes it. */
async function measureStart(
  { bench, gw1, gw2 }: Nodes,
  spec: InstanceSpec,
  offered: readonly string[],
): Promise<{ firstReplySeconds: number; totalSeconds: number; provision: Provision | undefined }> {
  const offers = offered.length === 0 ? [] : [{ node: "gw1", ...(await gw1.run("blobs.offer", { digests: [...offered], seconds: 7200 })) }];
  const { subscriber, gw2: host } = bench.lab.hosts;
  const reply = firstReply(subscriber, host.address);
  reply.catch(() => undefined);
  // until it asks
  await sleep(500);
  const began = Date.now();
  try {
    const status = await gw2.run("instance.apply", { spec, fresh: true, offers }, { timeoutMillis: 7_200_000 });
    const totalSeconds = (Date.now() - began) / 1000;
    const firstReplySeconds = ((await reply) - began) / 1000;
    return { firstReplySeconds, totalSeconds: Math.max(totalSeconds, firstReplySeconds), provision: status.provision };
  } finally {
    await gw2.run("instance.remove", { id: cloudlet, owner });
  }
}

/** What another run left of an overlay on gateway 2 is removed, so that it is remote again. */
async function forget({ gw2 }: Nodes, overlay: OverlayStatus): Promise<void> {
  await gw2.run("overlay.keep", { name: "measured", owner, digest: overlay.digest }).catch(() => undefined);
  await gw2.run("overlay.release", { name: "measured", owner }).catch(() => undefined);
}

async function* measureOverlay(nodes: Nodes, name: Application, overlay: OverlayStatus): AsyncGenerator<Cell> {
  const spec = specOf(nodes.base, overlay);
  for (const mbit of links) {
    await forget(nodes, overlay);
    await nodes.bench.lab.shape("gw2", mbit === 0 ? {} : { mbit });
    const { provision, ...times } = await measureStart(nodes, spec, [overlay.digest]);
    await nodes.bench.lab.shape("gw2", {});
    const bytes = provision?.bytesTransferred ?? 0;
    yield { overlay: name, mbit, way: "overlay remote", rung: provision?.rung ?? "?", bytes, floorSeconds: floorOf(bytes, mbit), ...times };
  }
  // kept, as it is where a program keeps it: its layer would go with the cloudlet before, and be recombined first
  const offers = [{ node: "gw1", ...(await nodes.gw1.run("blobs.offer", { digests: [overlay.digest], seconds: 600 })) }];
  await nodes.gw2.run("blobs.fetch", { digests: [overlay.digest], offers }, { timeoutMillis: 600_000 });
  await nodes.gw2.run("overlay.keep", { name: "measured", owner, digest: overlay.digest });
  const starts: Awaited<ReturnType<typeof measureStart>>[] = [];
  while (starts.length < localStarts) starts.push(await measureStart(nodes, spec, []));
  starts.sort((one, other) => one.firstReplySeconds - other.firstReplySeconds);
  const { provision, ...times } = starts[Math.floor(localStarts / 2)] ?? fail("nothing was started");
  yield { overlay: name, mbit: 0, way: "overlay local", rung: provision?.rung ?? "?", bytes: 0, floorSeconds: 0, ...times };
}

/** What one does without overlays: the whole disk image, or disk and compressed memory, is copied; then it boots or resumes. */
async function* measureCopies(nodes: Nodes, name: Application, overlay: OverlayStatus): AsyncGenerator<Cell> {
  const { bench, gw1, gw2 } = nodes;
  const host = bench.lab.hosts.gw1;
  const directory = `/var/lib/cloudlet/instances/${guestName(cloudlet)}`;
  const suspended = { ...specOf(nodes.base, overlay), state: "suspended" as const };
  await gw1.run("instance.apply", { spec: suspended, fresh: true, offers: [] }, { timeoutMillis: 600_000 });
  const image = await intoStore(host, `qemu-img convert -U -O qcow2 ${directory}/disk.qcow2 /var/tmp/whole`);
  const state = await intoStore(host, `cp ${directory}/suspend.state.zst /var/tmp/whole`);
  const resumed = performance.now();
  await gw1.run("instance.apply", { spec: specOf(nodes.base, overlay), fresh: false, offers: [] }, { timeoutMillis: 600_000 });
  const resumeSeconds = (performance.now() - resumed) / 1000;
  await gw1.run("instance.remove", { id: cloudlet, owner });
  for (const mbit of copyLinks) {
    const fetch = async (digest: string): Promise<number> => {
      const offers = [{ node: "gw1", ...(await gw1.run("blobs.offer", { digests: [digest], seconds: 7200 })) }];
      await bench.lab.shape("gw2", mbit === 0 ? {} : { mbit });
      const began = performance.now();
      await gw2.run("blobs.fetch", { digests: [digest], offers }, { timeoutMillis: 7_200_000 });
      const seconds = (performance.now() - began) / 1000;
      await bench.lab.shape("gw2", {});
      return seconds;
    };
    const imageSeconds = await fetch(image.digest);
    const boot = await measureStart(nodes, specOf(image.digest, undefined), []);
    const stateSeconds = await fetch(state.digest);
    for (const digest of [image.digest, state.digest])
      await bench.lab.hosts.gw2.run(`rm -f /var/lib/cloudlet/store/${digest.slice(0, 2)}/${digest}*`);
    const bootTotal = imageSeconds + boot.firstReplySeconds;
    const stateTotal = imageSeconds + stateSeconds + resumeSeconds;
    const cell = { overlay: name, mbit };
    yield {
      ...cell,
      ...{ way: "full image, boot", rung: "boot", bytes: image.bytes, floorSeconds: floorOf(image.bytes, mbit) },
      ...{ firstReplySeconds: bootTotal, totalSeconds: bootTotal },
    };
    const bytes = image.bytes + state.bytes;
    yield {
      ...cell,
      ...{ way: "full state, resume", rung: "resume", bytes, floorSeconds: floorOf(bytes, mbit) },
      ...{ firstReplySeconds: stateTotal, totalSeconds: stateTotal },
    };
  }
}

/** Puts what a command writes to a file into the store of gateway 1. */
async function intoStore(host: Bench["lab"]["hosts"][Hosts], command: string): Promise<{ digest: string; bytes: number }> {
  const text = await host.run(
    `set -e; rm -f /var/tmp/whole; ${command}; d=$(sha256sum /var/tmp/whole | cut -d" " -f1)
     curl -sf --unix-socket /run/cloudlet/agent.sock -T /var/tmp/whole http://agent/v1/blobs/$d; echo $d $(stat -c %s /var/tmp/whole); rm /var/tmp/whole`,
    { timeoutMillis: 600_000 },
  );
  const [digest = "", bytes = ""] = text.trim().split("\n").at(-1)?.split(" ") ?? [];
  return { digest, bytes: Number(bytes) };
}

/** What an overlay's manifest says, and where the data begins in the images that are recombined from it. */
async function readStored(
  host: Bench["lab"]["hosts"][Hosts],
  digest: string,
): Promise<Pick<Manifest, "pack"> & { dataOffsets: Partial<Record<ImageName, number>> }> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-bench-"));
  const copy = async (blob: string): Promise<string> => {
    const text = await host.run(`base64 -w0 /var/lib/cloudlet/store/${blob.slice(0, 2)}/${blob}`);
    await writeFile(join(directory, blob), Buffer.from(text, "base64"));
    return join(directory, blob);
  };
  try {
    const manifestPath = await copy(digest);
    const { index } = manifestSchema.parse(JSON.parse(await readFile(manifestPath, "utf8")));
    const { manifest, images, differences } = await readOverlay({ digest, manifest: manifestPath, index: await copy(index.digest) });
    const dataOffsets: Partial<Record<ImageName, number>> = {};
    for (const name of imageNames) {
      const [image, { virtualBytes } = { virtualBytes: 0 }] = [images[name], manifest[name]];
      if (image === undefined) continue;
      dataOffsets[name] = qcow2Layout({ virtualBytes, index: image, storedBlocks: differences.length }).metadata.length;
    }
    return { pack: manifest.pack, dataOffsets };
  } finally {
    await rm(directory, { recursive: true });
  }
}

/** What the changed blocks, each once, come to in one stream, and how long the quick level takes for them. */
async function measurePack(
  { gw1, bench }: Nodes,
  { digest }: OverlayStatus,
): Promise<{ packBytes: number; streamBytes: number; quickSeconds: number }> {
  const host = bench.lab.hosts.gw1;
  // as it is recombined, which no longer shows what was packed as a difference
  await gw1.run("overlay.verify", { digest }, { timeoutMillis: 600_000 });
  const { pack, dataOffsets } = await readStored(host, digest);
  const plain = "/var/tmp/plain";
  const images = Object.entries(dataOffsets).map(([name, offset]) => `tail -c +${offset + 1} ${name}.qcow2`);
  const write = `cd /var/lib/cloudlet/layers/${digest} && { cat state seed.iso; ${images.join("; ")}; } >${plain}`;
  await host.run(write, { timeoutMillis: 120_000 });
  const began = performance.now();
  await host.run(`zstd -3 -cq ${plain} >/dev/null`, { timeoutMillis: 120_000 });
  const quickSeconds = (performance.now() - began) / 1000;
  const text = await host.run(`zstd -19 --long -T2 -cq ${plain} | wc -c; rm ${plain}`, { timeoutMillis: 1_800_000 });
  return { packBytes: pack.bytes, streamBytes: Number(text), quickSeconds };
}

function note(cell: Cell): Cell {
  const seconds = (value: number): string => value.toFixed(2);
  console.log(
    `${cell.overlay.padEnd(7)} ${linkName(cell.mbit).padEnd(11)} ${cell.way.padEnd(19)} ${cell.rung.padEnd(7)} ${(cell.bytes / 1e6).toFixed(2).padStart(8)} MB  floor ${seconds(cell.floorSeconds)} s  first reply ${seconds(cell.firstReplySeconds)} s  total ${seconds(cell.totalSeconds)} s`,
  );
  return cell;
}

async function main(): Promise<void> {
  const results = await SynthesisResults.open(values.out);
  const gateways = await TwoGateways.open("bench", owner);
  try {
    const { bench, base } = gateways;
    const { gw1, gw2 } = gateways.agents;
    console.log("booting the base once, and keeping its memory on both gateways");
    const memory = await gateways.baseMemory();
    console.log(`base memory: ${(memory.bytes / 1e6).toFixed(1)} MB`);
    const nodes: Nodes = { bench, gw1, gw2, base, memory };
    for (const name of chosen) {
      const makings = workload(name, { base, parent: memory.digest });
      const overlay = await gw1.run("overlay.build", { name, owner, makings }, { timeoutMillis: 1_800_000 });
      const { memoryBytes, diskBytes, buildMillis = 0 } = overlay;
      const sealed = {
        overlay: name,
        memoryBytes,
        diskBytes,
        buildSeconds: buildMillis / 1000,
        ...(await measurePack(nodes, overlay)),
      };
      console.log(overlayRow(sealed));
      await results.sealed(sealed);
      for await (const cell of measureOverlay(nodes, name, overlay)) await results.cell(note(cell));
      if (copyLinks.length > 0) for await (const cell of measureCopies(nodes, name, overlay)) await results.cell(note(cell));
      await writeFile(join(values.out, "synthesis.svg"), chart(results.cells));
      await writeFile(join(values.out, "synthesis.md"), page(results.overlays, results.cells));
      await gw1.run("overlay.release", { name, owner });
    }
  } finally {
    await gateways.close();
  }
}

await main();
