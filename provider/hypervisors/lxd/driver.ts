import { rm } from "node:fs/promises";
import { join } from "node:path";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Driver, Guest, Progress } from "../types.ts";
import { appLog, startApp } from "./build.ts";
import { ask } from "./client.ts";
import { lastLines, readConsole } from "./console.ts";
import { execute } from "./exec.ts";
import { readTail, type Files } from "./files.ts";
import { collectImages, removeImages } from "./images.ts";
import { environmentKey, keys, stateOf } from "./mapping.ts";
import { exportBackup, importBackup, partName, removeExports, runningBytes } from "./parts.ts";
import { ensurePool, removePool } from "./pool.ts";
import {
  change,
  ensureInstance,
  findOurs,
  imagesDirectory,
  imagesTurn,
  makeFromDelta,
  mustHave,
  removeInstance,
  setConfig,
  stopInstance,
  syncBuild,
  syncInstance,
  syncVolumes,
} from "./instances.ts";
import { settle } from "./operations.ts";
import { packState, readOnce, unpackState } from "./state.ts";
import { foreignContainers } from "./takeOver.ts";
import { createVolume, readVolume, writeVolume } from "./volumes.ts";
import { inTurn } from "./turns.ts";
import { readRootDelta } from "./rootDelta.ts";
import { restoreSnapshot, takeSnapshot } from "./snapshots.ts";

export interface LxdDriverOptions {
  /** The agent's directory; what the driver puts on the host lies below it. */
  root: string;
  rest: Rest;
}

/** System containers by LXD's REST API. */
export function createLxdDriver(options: LxdDriverOptions): Driver {
  const { root, rest } = options;
  return {
    kind: "lxd",
    async describe() {
      const server = await ask(rest, { method: "GET", path: "/1.0", what: "ask for its version" }, serverSchema);
      if (server.auth !== "trusted" || server.environment === undefined) {
        throw new CloudletError("UNAUTHORIZED", `${rest.label} does not trust this client`, {
          fix: "add the client certificate with `lxc config trust add`",
        });
      }
      return { version: server.environment.server_version, accelerator: "none", machineTypes: [] };
    },
    ...life(options),
    ...inside(rest),
    ...copies(options),
    rootDelta: {
      async rootDelta(guest, progress) {
        await settle(rest, guest.name, progress);
        mustBeStopped(guest, stateOf(await mustHave(rest, guest, progress.signal)));
        return await readRootDelta(rest, guest, { root, progress });
      },
      makeFromDelta: (guest, delta, progress) => makeFromDelta(rest, guest, { root, delta, progress }),
    },
    foreign: foreignContainers(rest),
    createVolume: (hostPath) => createVolume(hostPath),
    readVolume: (hostPath) => readVolume(hostPath),
    writeVolume: (...[hostPath, , tar, progress]) => writeVolume(hostPath, tar, progress),
    async uninstall(progress) {
      await removeImages(rest, () => true, progress);
      await removePool(rest, root, progress);
      await rm(imagesDirectory(root), { recursive: true, force: true });
    },
  };
}

const serverSchema = z.object({ environment: z.object({ server_version: z.string() }).optional(), auth: z.string() });

function life({ root, rest }: LxdDriverOptions): Pick<Driver, "observe" | "ensure" | "start" | "stop" | "suspend" | "remove"> {
  return {
    async observe(guest) {
      const instance = await findOurs(rest, guest);
      return instance && stateOf(instance);
    },
    ensure: (guest, progress) => ensureInstance(rest, guest, { root, progress }),
    start: (guest, progress) => start(rest, guest, progress),
    stop: (guest, progress) => stopInstance(rest, guest, progress),
    async suspend(guest, progress) {
      const state = stateOf(await mustHave(rest, guest, progress.signal));
      if (state === "stopped") {
        throw new CloudletError("REFUSED", `${guest.name} is stopped, so it cannot be suspended`, { fix: "start it first" });
      }
      if (state === "running") await change(rest, guest, { action: "freeze", progress });
    },
    async remove(guest, progress) {
      await removeInstance(rest, guest, progress);
      await removeExports(guest);
      await rm(join(guest.directory, "console.log"), { force: true });
      await inTurn(imagesTurn, () => collectImages(rest, progress));
    },
  };
}

function inside(rest: Rest): Pick<Driver, "exec" | "log"> {
  return {
    async exec(guest, command, options) {
      const state = stateOf(await mustHave(rest, guest, options.signal));
      if (state !== "running") {
        throw new CloudletError("REFUSED", `${guest.name} is ${state}, so nothing can run in it`, { fix: "start it first" });
      }
      return await execute(rest, { guest: guest.name, command, ...options });
    },
    async log(guest, lines) {
      const stopped = stateOf(await mustHave(rest, guest)) === "stopped";
      const content = await readConsole(rest, guest, stopped);
      const app = guest.spec.build === undefined ? "" : await readTail({ rest, guest: guest.name }, appLog, 65_536);
      return lastLines(app === "" ? content : `${content.replace(/\n*$/, "\n")}${app}`, lines);
    },
  };
}

type Copies = Pick<Driver, "snapshot" | "restore" | "exportParts" | "ahead" | "importParts" | "exportState" | "importState">;

function copies({ root, rest }: LxdDriverOptions): Copies {
  return {
    snapshot: (guest, name, progress) => takeSnapshot(rest, guest, { name, progress }),
    async restore(guest, name, progress) {
      const wasRunning = await restoreSnapshot(rest, guest, { name, progress });
      if (wasRunning) await start(rest, guest, progress);
    },
    async exportParts(guest, progress) {
      await settle(rest, guest.name, progress);
      mustBeStopped(guest, stateOf(await mustHave(rest, guest, progress.signal)));
      return await exportBackup(rest, guest, progress);
    },
    ahead: {
      diskBytes: (guest, progress) => runningBytes(rest, guest, progress),
      async exportParts(guest, progress) {
        await settle(rest, guest.name, progress);
        return await exportBackup(rest, guest, progress);
      },
    },
    async importParts(guest, directory, progress) {
      await settle(rest, guest.name, progress);
      const present = await findOurs(rest, guest, progress.signal);
      if (present !== undefined) {
        // what an interrupted import left: the parts are the truth
        mustBeStopped(guest, stateOf(present));
        await removeInstance(rest, guest, progress);
      }
      await importBackup(rest, guest, { path: join(directory, partName), pool: await ensurePool(rest, root, progress), progress });
      await syncInstance(rest, guest, { instance: await mustHave(rest, guest, progress.signal), progress });
    },
    async exportState(guest, progress) {
      const state = stateOf(await mustHave(rest, guest, progress.signal));
      return readOnce(await quiesced(rest, guest, { state, progress }));
    },
    async importState(guest, tar, progress) {
      mustBeStopped(guest, stateOf(await mustHave(rest, guest, progress.signal)));
      await unpackState(filesOf(rest, guest, progress), guest, { tar, progress });
    },
  };
}

async function start(rest: Rest, guest: Guest, progress: Progress): Promise<void> {
  await settle(rest, guest.name, progress);
  const instance = await mustHave(rest, guest, progress.signal);
  const state = stateOf(instance);
  if (state === "suspended") await change(rest, guest, { action: "unfreeze", progress });
  if (state === "stopped") {
    await readConsole(rest, guest, true);
    await syncVolumes(guest, instance);
    await setConfig(rest, guest, { config: { [keys.environment]: environmentKey(guest.spec) }, progress });
    await change(rest, guest, { action: "start", progress });
  }
  if (guest.spec.build !== undefined) await startBuild(rest, guest, { fresh: state === "stopped", progress });
}

/** A start of the container starts the application, too; the version that is declared, if that is not yet there. */
async function startBuild(rest: Rest, guest: Guest, { fresh, progress }: { fresh: boolean; progress: Progress }): Promise<void> {
  const instance = await mustHave(rest, guest, progress.signal);
  try {
    if (!(await syncBuild(rest, guest, { instance, progress }))) await startApp(rest, guest, progress);
  } catch (error) {
    // without its application a container only looks as if it ran
    if (fresh)
      await change(rest, guest, { action: "kill", progress: { ...progress, signal: AbortSignal.timeout(30_000) } }).catch(() => undefined);
    throw error;
  }
}

/** Ends a running guest, then copies: whoever wants it to go on starts it again. */
async function quiesced(rest: Rest, guest: Guest, { state, progress }: { state: string; progress: Progress }): Promise<string> {
  // what is copied after the end is the last that was written; a frozen guest may still write while it is being killed
  if (state !== "stopped") await change(rest, guest, { action: state === "running" ? "stop" : "kill", progress });
  try {
    return await packState(filesOf(rest, guest, progress), guest, progress);
  } catch (error) {
    const later = { ...progress, signal: AbortSignal.timeout(60_000) };
    if (state === "running") await start(rest, guest, later).catch(() => undefined);
    throw error;
  }
}

function filesOf(rest: Rest, guest: Guest, progress: Progress): Files {
  return { rest, guest: guest.name, signal: progress.signal };
}

function mustBeStopped(guest: Guest, state: string): void {
  if (state !== "stopped") throw new CloudletError("REFUSED", `${guest.name} is ${state}`, { fix: "stop it first" });
}
