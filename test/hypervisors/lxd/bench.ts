import { createHash } from "node:crypto";
import { chmodSync, copyFileSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { guestName, type InstanceSpec } from "../../../provider/agent/protocol.ts";
import { createLxdDriver } from "../../../provider/hypervisors/lxd/driver.ts";
import { restOverSocket } from "../../../provider/hypervisors/lxd/socketRest.ts";
import type { Guest, Progress } from "../../../provider/hypervisors/types.ts";
import type { Rest } from "../../../provider/transport/types.ts";
import type { DriverBench } from "../../contracts/driver.ts";
import { createLab, type Lab } from "../../lab/lab.ts";
import { run } from "../../lab/run.ts";
import { labDirectory } from "../../lab/state.ts";

export interface LxdBench extends DriverBench {
  lab: Lab<"gw">;
  rest: Rest;
  /** A directory that LXD and the driver see at the same path. */
  root: string;
  /** A tar of a busybox root file system. */
  base: string;
  buildTar(files: Record<string, string>): Promise<{ path: string; digest: string }>;
}

export const progress: Progress = { signal: AbortSignal.timeout(900_000), status: () => undefined };

/** A real LXD on a lab host, driven from outside through its socket. */
export async function openLxdBench(name: string): Promise<LxdBench> {
  const lab = await createLab({ name, hosts: [{ name: "gw", lxd: true }] });
  const data = join(labDirectory(name), "gw", "data");
  const root = join(data, "cloudlet");
  await lab.hosts.gw.run(
    `mkdir -p ${root} && mount --bind /var/lib/cloudlet ${root} && ip link add cloudlet0 type bridge && ip link set cloudlet0 up`,
  );
  const socket = join(data, "lxd", "unix.socket");
  const rest = restOverSocket(socket, "LXD on gw");
  const base = await makeBase(join(root, "base.tar"));
  let guests = 0;
  return {
    lab,
    rest,
    root,
    base,
    driver: createLxdDriver({ root, rest }),
    guest(id, changes = {}) {
      const guestDirectory = join(root, "guests", id);
      mkdirSync(guestDirectory, { recursive: true });
      const mac = `02:00:00:00:00:${(++guests).toString(16).padStart(2, "0")}`;
      return Promise.resolve(describeGuest({ id, changes, base, directory: guestDirectory, mac }));
    },
    silence() {
      renameSync(socket, `${socket}.away`);
      return Promise.resolve(() => Promise.resolve(renameSync(`${socket}.away`, socket)));
    },
    buildTar: (files) => makeBuild(root, files),
    close: () => lab.close(),
  };
}

function describeGuest(from: { id: string; changes: Partial<InstanceSpec>; base: string; directory: string; mac: string }): Guest {
  const spec: InstanceSpec = {
    id: `test/${from.id}`,
    owner: "project/stack",
    kind: "lxd",
    state: "running",
    base: { digest: digestOf(from.base) },
    resources: { cores: 1, memoryMib: 128, diskMib: 256 },
    ports: [],
    files: [],
    environment: {},
    volumes: [],
    stateFiles: [],
    ...from.changes,
  };
  return {
    name: guestName(spec.id),
    spec,
    basePath: from.base,
    directory: from.directory,
    network: { bridge: "cloudlet0", mac: from.mac, address: "10.87.0.9", prefix: 16, gateway: "10.87.0.1" },
    volumes: [],
  };
}

const inittab =
  "::sysinit:/bin/hostname -F /etc/hostname\n::sysinit:/bin/echo booted\n::respawn:/bin/sleep 100000\n::shutdown:/bin/echo goes down\n";

async function makeBase(tar: string): Promise<string> {
  const directory = mkdtempSync(join(tmpdir(), "lxd-base-"));
  for (const it of ["bin", "sbin", "etc", "proc", "sys", "dev", "tmp", "root", "var/log", "opt"])
    mkdirSync(join(directory, it), { recursive: true });
  copyFileSync("/bin/busybox", join(directory, "bin/busybox"));
  chmodSync(join(directory, "bin/busybox"), 0o755);
  for (const applet of (await run(["/bin/busybox", "--list"])).trim().split("\n"))
    if (applet !== "busybox") symlinkSync("busybox", join(directory, "bin", applet));
  symlinkSync("../bin/busybox", join(directory, "sbin/init"));
  writeFileSync(join(directory, "etc/inittab"), inittab);
  writeFileSync(join(directory, "etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n");
  await run(["tar", "-C", directory, "--numeric-owner", "--owner=0", "--group=0", "--sort=name", "--mtime=@0", "-cf", tar, "."]);
  rmSync(directory, { recursive: true });
  return tar;
}

async function makeBuild(root: string, files: Record<string, string>): Promise<{ path: string; digest: string }> {
  const directory = mkdtempSync(join(tmpdir(), "build-"));
  for (const [name, content] of Object.entries(files)) {
    mkdirSync(join(directory, name, ".."), { recursive: true });
    writeFileSync(join(directory, name), content, { mode: 0o755 });
  }
  const path = `${join(root, directory.split("/").at(-1) ?? "")}.tar`;
  await run(["tar", "-C", directory, "--numeric-owner", "--owner=0", "--group=0", "-cf", path, "."]);
  rmSync(directory, { recursive: true });
  return { path, digest: digestOf(path) };
}

export function digestOf(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}
