import { execFile, spawn } from "node:child_process";
import type { ChildProcess } from "node:child_process";
import { once } from "node:events";
import { chmod, copyFile, mkdir, rm, stat } from "node:fs/promises";
import http from "node:http";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import type { Driver, Frozen, Guest, Origin, Progress, Synthesis } from "../../../provider/hypervisors/types.ts";
import { openQemuBench } from "./bench.ts";

const execute = promisify(execFile);
export const progress: Progress = { signal: AbortSignal.timeout(900_000), status: () => undefined };

/** A bench whose bridge is a gateway: guests have addresses of their own, and can be reached from here. */
export async function openOverlayBench() {
  const bench = await openQemuBench();
  const subnet = `10.${String(100 + (process.pid % 100))}`;
  const { network, basePath } = await bench.guest("nobody");
  const { bridge } = network;
  await execute("ip", ["link", "set", bridge, "address", "02:00:0a:57:00:01"]);
  await execute("ip", ["address", "add", `${subnet}.0.1/16`, "dev", bridge]);
  let last = 1;
  const synthesis = synthesisOf(bench.driver);
  await chmod(bench.root, 0o755);
  const open = join(bench.root, "open");
  await mkdir(open, { mode: 0o755 });
  return {
    ...bench,
    synthesis,
    basePath,
    /** A directory that guests' users can reach. */
    open,
    gateway: `${subnet}.0.1`,
    /** A guest with an address of its own. */
    async guest(name: string, changes: Partial<Guest["spec"]> = {}): Promise<Guest> {
      last += 1;
      const hex = last.toString(16).padStart(2, "0");
      const guest = await bench.guest(name, changes);
      return {
        ...guest,
        network: { ...guest.network, address: `${subnet}.0.${String(last)}`, gateway: `${subnet}.0.1`, mac: `02:00:00:00:01:${hex}` },
      };
    },
  };
}
export type OverlayBench = Awaited<ReturnType<typeof openOverlayBench>>;

function synthesisOf(driver: Driver): Synthesis {
  if (driver.synthesis === undefined) throw new Error("the driver has no synthesis");
  return driver.synthesis;
}

/** Makes layers out of a frozen guest with QEMU's own tools, whole images, as they would lie on a node. */
export async function layersOf(frozen: Frozen, options: { guest: Guest; network?: Origin["network"]; directory: string }): Promise<Origin> {
  const { guest, directory } = options;
  await mkdir(directory, { recursive: true });
  const at = (name: string) => join(directory, name);
  const small = ["-O", "qcow2", "-o", "cluster_size=4096"];
  await execute("qemu-img", ["convert", ...small, "-f", "raw", frozen.memory, at("memory.qcow2")]);
  const { stdout } = await execute("qemu-img", ["info", "--output=json", frozen.disk]);
  const below = String(JSON.parse(stdout)["backing-filename"]);
  const format = String(JSON.parse(stdout)["backing-filename-format"]);
  await execute("qemu-img", ["convert", ...small, "-B", below, "-F", format, "-f", "qcow2", frozen.disk, at("disk.qcow2")]);
  await copyFile(frozen.state, at("state"));
  await copyFile(frozen.seed, at("seed.iso"));
  return {
    disk: { file: at("disk.qcow2") },
    memory: { file: at("memory.qcow2") },
    state: at("state"),
    seed: at("seed.iso"),
    machine: frozen.machine,
    network: options.network ?? { mac: guest.network.mac, address: guest.network.address },
  };
}

/** Gives a guest that nobody answers by DHCP its address. */
export async function configure(driver: Driver, guest: Guest): Promise<void> {
  const { address, prefix, gateway } = guest.network;
  const script = `ip address add ${address}/${String(prefix)} dev eth0; ip link set eth0 up; ip route add default via ${gateway}`;
  await driver.exec(guest, ["sh", "-c", script], { timeoutMillis: 120_000 });
}

/** What the demo application answers, or undefined. */
export async function ask(guest: Guest, timeoutMillis = 1_000): Promise<string | undefined> {
  return new Promise((resolve) => {
    const request = http.get({ host: guest.network.address, port: 8080, path: "/", agent: false, timeout: timeoutMillis }, (response) => {
      let text = "";
      response.on("data", (chunk: Buffer) => (text += chunk.toString("utf8"))).on("end", () => resolve(text));
    });
    request.on("timeout", () => request.destroy()).on("error", () => resolve(undefined));
  });
}

/** Milliseconds until it answered. */
export async function answered(guest: Guest, timeoutMillis = 30_000): Promise<number> {
  const begin = performance.now();
  // patient: a request that is given up still costs the guest its answer
  while ((await ask(guest, 10_000)) === undefined) {
    if (performance.now() - begin > timeoutMillis) throw new Error(`${guest.name} did not answer within ${String(timeoutMillis)} ms`);
    await delay(5);
  }
  return performance.now() - begin;
}

/** Serves the bytes of files over NBD, as a layer that is arriving is served. */
export async function serveFiles(
  socket: string,
  files: Record<string, string>,
): Promise<{ pid: number; end(): Promise<void>; silence(): void; wake(): void }> {
  await rm(socket, { force: true });
  const nodes = Object.entries(files).flatMap(([name, filename]) => [
    ...["--blockdev", JSON.stringify({ driver: "file", "node-name": name, filename, "read-only": true, locking: "off" })],
    ...["--export", JSON.stringify({ type: "nbd", id: name, "node-name": name, name })],
  ]);
  const server = ["--nbd-server", JSON.stringify({ addr: { type: "unix", path: socket }, "max-connections": 0 })];
  const blockdevs = nodes.filter((_word, index) => index % 4 < 2);
  const exports = nodes.filter((_word, index) => index % 4 >= 2);
  const child: ChildProcess = spawn("qemu-storage-daemon", [...blockdevs, ...server, ...exports], { stdio: "inherit" });
  const gone = once(child, "exit");
  for (let tries = 0; tries < 500 && !(await stat(socket).catch(() => undefined)); tries++) await delay(10);
  await delay(50);
  // QEMU connects anew as its own user
  await chmod(socket, 0o666);
  return {
    pid: child.pid ?? 0,
    async end() {
      child.kill("SIGKILL");
      await gone;
    },
    silence: () => void child.kill("SIGSTOP"),
    wake: () => void child.kill("SIGCONT"),
  };
}
