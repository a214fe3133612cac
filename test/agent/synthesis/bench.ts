import { createHash } from "node:crypto";
import { createReadStream, openSync, readSync, closeSync, readdirSync, statSync, writeSync } from "node:fs";
import { readFile } from "node:fs/promises";
import http from "node:http";
import { join } from "node:path";
import { Readable } from "node:stream";
import { once } from "node:events";
import { createAgentClient } from "../../../provider/agent/client.ts";
import type { AgentClient } from "../../../provider/agent/clientTypes.ts";
import { paths } from "../../../provider/agent/protocol.ts";
import type { InstanceSpec, InstanceStatus, Makings, Offer } from "../../../provider/agent/protocol.ts";
import { CloudletError } from "../../../provider/core/errors.ts";
import type { Rest } from "../../../provider/transport/types.ts";
import { openGateways } from "../../gateways.ts";
import type { GatewayName, Gateways } from "../../gateways.ts";

export const owner = "p/s";
const resources = { cores: 1, memoryMib: 192, diskMib: 512 };
const ready = { http: { port: 8080, path: "/peek" }, timeoutSeconds: 120 };
const source = join(import.meta.dirname, "..", "..", "..", "dist", "agent.js");

/** Two commissioned gateways, spoken to as the operator's side does, but without an engine. */
export class OverlayBench {
  readonly gateways: Gateways;
  readonly base: { digest: string; file: string };

  constructor(gateways: Gateways, base: OverlayBench["base"]) {
    this.gateways = gateways;
    this.base = base;
  }

  client(gateway: GatewayName): AgentClient {
    return createAgentClient(restOver(this.#inside(gateway, paths.socket), gateway));
  }

  async putBase(gateway: GatewayName): Promise<void> {
    const { digest, file } = this.base;
    if (await this.client(gateway).hasBlob(digest)) return;
    await this.client(gateway).putBlob({ digest, bytes: statSync(file).size, stream: () => createReadStream(file) });
  }

  makings(script: string): Makings {
    return { kind: "kvm", base: this.base.digest, resources, files: [], environment: {}, script, ready };
  }

  spec(name: string, overlay: string, change: Partial<InstanceSpec> = {}): InstanceSpec {
    return {
      id: `visits/${name}`,
      owner,
      kind: "kvm",
      state: "running",
      base: { digest: this.base.digest },
      overlay: { digest: overlay },
      resources,
      ports: [],
      files: [],
      environment: {},
      volumes: [],
      stateFiles: [],
      ready,
      ...change,
    };
  }

  apply(gateway: GatewayName, spec: InstanceSpec, offers: Offer[] = []): Promise<InstanceStatus> {
    return this.client(gateway).run("instance.apply", { spec, fresh: true, offers });
  }

  remove(gateway: GatewayName, name: string): Promise<unknown> {
    return this.client(gateway).run("instance.remove", { id: `visits/${name}`, owner });
  }

  async offer(gateway: GatewayName, digest: string): Promise<Offer> {
    return { node: gateway, ...(await this.client(gateway).run("blobs.offer", { digests: [digest], seconds: 600 })) };
  }

  /** The application's answer, asked on the gateway itself at the cloudlet's own address. */
  async ask(gateway: GatewayName, name: string): Promise<string> {
    const status = await this.client(gateway).instance(`visits/${name}`);
    return this.gateways.lab.hosts[gateway].run(`curl -s -m 5 http://${status?.address ?? ""}:8080/peek`);
  }

  /** Flips one byte in the middle of a blob, as a bad disk would: its time of change stays the same. */
  flip(gateway: GatewayName, digest: string): void {
    const file = this.#inside(gateway, `${paths.root}/store/${digest.slice(0, 2)}/${digest}`);
    const [at, byte] = [Math.floor(statSync(file).size / 2), Buffer.alloc(1)];
    const handle = openSync(file, "r+");
    readSync(handle, byte, 0, 1, at);
    byte.writeUInt8((byte[0] ?? 0) ^ 0xff);
    writeSync(handle, byte, 0, 1, at);
    closeSync(handle);
  }

  async manifest(gateway: GatewayName, digest: string): Promise<{ index: { digest: string }; pack: { digest: string; bytes: number } }> {
    return JSON.parse(await readFile(this.#inside(gateway, `${paths.root}/store/${digest.slice(0, 2)}/${digest}`), "utf8")) as never;
  }

  list(gateway: GatewayName, directory: string): string[] {
    return readdirSync(this.#inside(gateway, `${paths.root}/${directory}`));
  }

  /** Programs on a gateway that belong to guests and overlays. */
  async programs(gateway: GatewayName): Promise<string[]> {
    const found = await this.gateways.lab.hosts[gateway].run(
      "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -E 'qemu-system|qemu-storage-daemon|agent.js hydrate' | cut -c1-120; done; ip netns list 2>/dev/null; true",
    );
    return found.split("\n").filter((line) => line.trim() !== "" && !line.startsWith("/bin/sh -c for"));
  }

  #inside(gateway: GatewayName, path: string): string {
    return `/proc/${String(this.gateways.lab.hosts[gateway].pids[0])}/root${path}`;
  }
}

export async function openOverlayBench(name: string): Promise<OverlayBench> {
  statSync(source);
  const gateways = await openGateways(name);
  try {
    const outcome = await gateways.up({ gateways: { gw1: { kind: "kvm" }, gw2: { kind: "kvm" } } });
    if (!outcome.ok) throw new Error(outcome.text);
    const file = gateways.images.vm;
    const hash = createHash("sha256");
    for await (const chunk of createReadStream(file) as AsyncIterable<Buffer>) hash.update(chunk);
    return new OverlayBench(gateways, { digest: hash.digest("hex"), file });
  } catch (error) {
    await gateways.close();
    throw error;
  }
}

function restOver(socketPath: string, label: string): Rest {
  return {
    label,
    close: () => Promise.resolve(),
    async request({ method, path, headers, body, signal }) {
      const request = http.request({ socketPath, method, path, headers, signal, agent: false });
      if (body instanceof Readable) body.pipe(request);
      else request.end(body === undefined ? undefined : Buffer.isBuffer(body) ? body : JSON.stringify(body));
      const [response] = (await once(request, "response").catch((cause: unknown) => {
        throw new CloudletError(signal?.aborted === true ? "ABORTED" : "UNREACHABLE", `${label} does not answer`, { cause });
      })) as [http.IncomingMessage];
      return { status: response.statusCode ?? 0, headers: {}, body: response };
    },
  };
}
