import { spawn } from "node:child_process";
import { createReadStream, createWriteStream } from "node:fs";
import { access, chown, mkdtemp, open, rename, rm } from "node:fs/promises";
import { createConnection, createServer } from "node:net";
import type { Socket } from "node:net";
import { dirname, join } from "node:path";
import { pipeline } from "node:stream/promises";
import { syncDirectory } from "../../agent/durable.ts";
import { run } from "../../agent/process.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Qmp } from "./qmp.ts";
import { cancelMigration, migrateTo, migrationEnded } from "./qmpCommands.ts";

export const suspendFiles = ["suspend.state.zst", "suspend.state"] as const;

/** The saved RAM and device state, if the guest is suspended. */
export async function suspendFile(directory: string): Promise<string | undefined> {
  for (const name of suspendFiles) {
    const path = join(directory, name);
    if (
      await access(path).then(
        () => true,
        () => false,
      )
    )
      return path;
  }
  return undefined;
}

export async function forgetSuspended(directory: string): Promise<void> {
  for (const name of suspendFiles) await rm(join(directory, name), { force: true });
  await syncDirectory(directory);
}

interface Keeping {
  user: { uid: number; gid: number } | undefined;
  signal: AbortSignal;
}

/** Writes RAM and device state of a paused guest to its directory. */
export async function saveState(qmp: Qmp, directory: string, keeping: Keeping): Promise<void> {
  const compressed = await run(["zstd", "--version"]).then(
    () => true,
    () => false,
  );
  await saveStream(qmp, { path: join(directory, suspendFiles[compressed ? 0 : 1]), compressed }, keeping);
}

/** A socket and not `exec:`, as the sandbox forbids QEMU children. */
export async function saveStream(qmp: Qmp, target: { path: string; compressed: boolean }, keeping: Keeping): Promise<void> {
  const temporary = `${target.path}.new`;
  const place = await mkdtemp("/run/cloudlet-suspend-");
  const socketPath = join(place, "state.sock");
  const server = createServer({ allowHalfOpen: true });
  try {
    const connected = new Promise<Socket>((resolve) => server.once("connection", resolve));
    await new Promise<void>((resolve, reject) => server.once("error", reject).listen(socketPath, resolve));
    if (keeping.user !== undefined) for (const path of [place, socketPath]) await chown(path, keeping.user.uid, keeping.user.gid);
    const received = connected.then((socket) => receive(socket, temporary, target.compressed));
    received.catch(() => undefined);
    await migrateTo(qmp, socketPath);
    await migrationEnded(qmp, "saving the guest's memory", { signal: keeping.signal, timeoutMillis: stateMillis });
    await received;
    await rename(temporary, target.path);
    await syncDirectory(dirname(target.path));
  } catch (error) {
    await cancelMigration(qmp).catch(() => undefined);
    await rm(temporary, { force: true });
    throw error;
  } finally {
    server.close();
    await rm(place, { recursive: true, force: true });
  }
}

/** Sends a saved state to a QEMU that waits for it at the socket. */
export async function sendState(path: string, socketPath: string, signal: AbortSignal): Promise<void> {
  const socket = createConnection(socketPath);
  if (!path.endsWith(".zst")) return pipeline(createReadStream(path), socket, { signal });
  const zstd = spawn("zstd", ["-dcq", path], { stdio: ["ignore", "pipe", "ignore"] });
  const exit = exitOf(zstd);
  try {
    await pipeline(zstd.stdout, socket, { signal });
  } catch (error) {
    zstd.kill();
    throw error;
  }
  // not killed after its last byte: it may not have ended yet, and would seem to have failed
  if ((await exit) !== 0)
    throw new CloudletError("INTEGRITY", `the saved memory ${path} cannot be decompressed`, {
      fix: "set the cloudlet's state to stopped, then to running: it boots from its disk",
    });
}

const stateMillis = 300_000;

async function receive(socket: Socket, path: string, compressed: boolean): Promise<void> {
  if (compressed) {
    const zstd = spawn("zstd", ["-q", "-3", "-T0", "-f", "-o", path], { stdio: ["pipe", "ignore", "ignore"] });
    const exit = exitOf(zstd);
    await pipeline(socket, zstd.stdin);
    if ((await exit) !== 0)
      throw new CloudletError("FAILED", `the guest's memory cannot be written to ${path}`, { fix: "free space on the node's disk" });
  } else {
    await pipeline(socket, createWriteStream(path, { mode: 0o600 }));
  }
  const handle = await open(path, "r+");
  await handle.chmod(0o600);
  await handle.sync();
  await handle.close();
}

function exitOf(child: ReturnType<typeof spawn>): Promise<number> {
  return new Promise((resolve) => {
    child.once("error", () => resolve(127));
    child.once("close", (code) => resolve(code ?? 1));
  });
}
