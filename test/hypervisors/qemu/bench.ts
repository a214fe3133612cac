import { execFile } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import { guestName } from "../../../provider/agent/protocol.ts";
import { createQemuDriver } from "../../../provider/hypervisors/qemu/driver.ts";
import type { Guest } from "../../../provider/hypervisors/types.ts";
import { buildImages } from "../../../tools/images/images.ts";
import type { DriverBench } from "../../contracts/driver.ts";

const execute = promisify(execFile);

/** The QEMU driver with a bridge and a directory of its own; guests run as an unprivileged user that every Debian has. */
export async function openQemuBench(): Promise<DriverBench & { root: string; logged: string[] }> {
  const { vm: basePath } = await buildImages();
  const root = await mkdtemp(join(tmpdir(), "qemu-bench-"));
  const bridge = `qb${String(process.pid)}`;
  await execute("ip", ["link", "add", bridge, "type", "bridge"]);
  await execute("ip", ["link", "set", bridge, "up"]);
  const logged: string[] = [];
  const driver = createQemuDriver({ user: "nobody", log: (line) => void logged.push(line) });

  return {
    driver,
    root,
    logged,
    async guest(name, changes = {}) {
      const id = `contract/${name}`;
      const directory = join(root, name);
      await mkdir(directory, { recursive: true });
      return { ...describeGuest(id, basePath, bridge), directory, spec: { ...describeGuest(id, basePath, bridge).spec, ...changes } };
    },
    async silence(guest) {
      const pid = Number.parseInt(await readFile(join(guest.directory, "qemu.pid"), "utf8"), 10);
      process.kill(pid, "SIGSTOP");
      return async () => void process.kill(pid, "SIGCONT");
    },
    async close() {
      await driver.uninstall({ signal: AbortSignal.timeout(10_000), status: () => undefined });
      await execute("ip", ["link", "delete", bridge]);
      await rm(root, { recursive: true, force: true });
    },
  };
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
      resources: { cores: 1, memoryMib: 256, diskMib: 256 },
      ports: [],
      files: [],
      environment: {},
      volumes: [],
      stateFiles: [],
    },
  };
}
