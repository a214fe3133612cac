import { execFile } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { guestName } from "../../../provider/agent/protocol.ts";
import { createQemuDriver } from "../../../provider/hypervisors/qemu/driver.ts";
import type { Driver, Guest, Progress } from "../../../provider/hypervisors/types.ts";
import { buildImages } from "../../../tools/images/images.ts";
import type { DriverBench } from "../../contracts/driver.ts";

const execute = promisify(execFile);

const rootPrefix = "qemu-bench-";
const briefly = (): Progress => ({ signal: AbortSignal.timeout(30_000), status: () => undefined });

/**
 * The QEMU driver with a bridge and a directory of its own, all named after this process; guests run as an unprivileged
 * user that every Debian has. What a killed run left is removed first.
 */
export async function openQemuBench(): Promise<DriverBench & { root: string; logged: string[] }> {
  const { vm: basePath } = await buildImages();
  await sweepQemuBenches();
  const root = await mkdtemp(join(tmpdir(), `${rootPrefix}${String(process.pid)}-`));
  const bridge = bridgeOf(process.pid);
  await execute("ip", ["link", "add", bridge, "type", "bridge"]);
  await execute("ip", ["link", "set", bridge, "up"]);
  const logged: string[] = [];
  const driver = createQemuDriver({ user: "nobody", log: (line) => void logged.push(line) });

  return {
    driver,
    root,
    logged,
    async guest(name, changes = {}) {
      const id = idOf(process.pid, name);
      const directory = join(root, name);
      await mkdir(directory, { recursive: true });
      return { ...describeGuest(id, basePath, bridge), directory, spec: { ...describeGuest(id, basePath, bridge).spec, ...changes } };
    },
    async silence(guest) {
      const pid = Number.parseInt(await readFile(join(guest.directory, "qemu.pid"), "utf8"), 10);
      process.kill(pid, "SIGSTOP");
      return async () => void process.kill(pid, "SIGCONT");
    },
    close: () => clear(driver, { root, pid: process.pid }),
  };
}

/** Ends the guests of benches whose process is gone, and removes what they had. */
export async function sweepQemuBenches(): Promise<void> {
  for (const name of await readdir(tmpdir())) {
    const pid = Number(name.startsWith(rootPrefix) ? name.slice(rootPrefix.length).split("-")[0] : undefined);
    if (!(pid > 1) || existsSync(`/proc/${String(pid)}`)) continue;
    await clear(createQemuDriver({ user: "nobody" }), { root: join(tmpdir(), name), pid });
  }
}

async function clear(driver: Driver, { root, pid }: { root: string; pid: number }): Promise<void> {
  for (const entry of await readdir(root, { withFileTypes: true })) {
    if (!entry.isDirectory()) continue;
    const guest = describeGuest(idOf(pid, entry.name), "", bridgeOf(pid));
    await driver.remove({ ...guest, directory: join(root, entry.name) }, briefly());
  }
  await driver.uninstall(briefly());
  if (existsSync(`/sys/class/net/${bridgeOf(pid)}`)) await execute("ip", ["link", "delete", bridgeOf(pid)]);
  await rm(root, { recursive: true, force: true });
}

function idOf(pid: number, name: string): string {
  return `contract-${String(pid)}/${name}`;
}

function bridgeOf(pid: number): string {
  return `qb${String(pid)}`;
}

/** A guest as the agent would describe it. */
export function describeGuest(id: string, basePath: string, bridge: string): Guest {
  return {
    name: guestName(id),
    basePath,
    directory: "/var/lib/cloudlet/instances/demo",
    network: { bridge, mac: "02:00:00:00:00:07", address: "10.87.0.7", prefix: 16, gateway: "10.87.0.1" },
    volumes: [],
    spec: {
      id,
      owner: "project/stack",
      kind: "kvm",
      state: "running",
      base: { digest: "0".repeat(64) },
      resources: { cores: 1, memoryMib: 128, diskMib: 256 },
      ports: [],
      files: [],
      environment: {},
      volumes: [],
      stateFiles: [],
    },
  };
}
