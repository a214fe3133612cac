import { join } from "node:path";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Guest, Progress } from "../types.ts";
import { applyBuild, stopApp } from "./build.ts";
import { findInstance, type LxdInstance } from "./client.ts";
import { readConsole } from "./console.ts";
import { makeParents, writeFile } from "./files.ts";
import { ensureImage, type Blob } from "./images.ts";
import { buildKey, environmentKey, filesKey, isOurs, keys, merge, rootIdOf, stateOf, toLxd, type Config } from "./mapping.ts";
import { deadlines, perform, settle, waitOf } from "./operations.ts";
import { ensurePool } from "./pool.ts";
import { inTurn } from "./turns.ts";
import { shiftVolume } from "./volumes.ts";

const stopSeconds = 10;
export const imagesTurn = "images";

interface Observed {
  instance: LxdInstance;
  progress: Progress;
}

/** The guest's container; a container of that name that is not ours is none of our business. */
export async function findOurs(rest: Rest, guest: Guest, signal?: AbortSignal): Promise<LxdInstance | undefined> {
  const instance = await findInstance(rest, guest.name, signal);
  return instance !== undefined && isOurs(instance, guest.spec) ? instance : undefined;
}

export async function mustHave(rest: Rest, guest: Guest, signal?: AbortSignal): Promise<LxdInstance> {
  const instance = await findOurs(rest, guest, signal);
  if (instance === undefined) throw new CloudletError("NOT_FOUND", `${rest.label} has no container ${guest.name} for ${guest.spec.id}`);
  return instance;
}

export async function ensureInstance(
  rest: Rest,
  guest: Guest,
  { root, progress }: { root: string; progress: Progress },
): Promise<{ restartNeeded: boolean }> {
  await settle(rest, guest.name, progress);
  const present = await findFree(rest, guest, progress);
  if (present === undefined) await makeInstance(rest, guest, { root, progress });
  const instance = present ?? (await mustHave(rest, guest, progress.signal));
  if (instance.config[keys.base] !== guest.spec.base.digest) {
    throw new CloudletError("REFUSED", `${guest.spec.id} was made from another base`, { fix: "replace the cloudlet to change its base" });
  }
  await syncInstance(rest, guest, { instance, progress });
  await syncFiles(rest, guest, { instance, progress });
  const state = stateOf(instance);
  if (state === "running") await syncBuild(rest, guest, { instance, progress });
  return { restartNeeded: state !== "stopped" && instance.config[keys.environment] !== environmentKey(guest.spec) };
}

/** Makes the container, stopped, from its base and an overlay's delta; one that was made so is left alone. */
export async function makeFromDelta(
  rest: Rest,
  guest: Guest,
  { root, delta, progress }: { root: string; delta: Blob; progress: Progress },
): Promise<void> {
  await settle(rest, guest.name, progress);
  const present = await findFree(rest, guest, progress);
  if (present === undefined) return makeInstance(rest, guest, { root, delta, progress });
  if (present.config[keys.base] === guest.spec.base.digest && present.config[keys.delta] === delta.digest) return;
  throw new CloudletError("REFUSED", `${guest.spec.id} was made from another overlay or base`, {
    fix: "replace the cloudlet to change what it is made from",
  });
}

/** The guest's container; undefined = its name is free. */
async function findFree(rest: Rest, guest: Guest, progress: Progress): Promise<LxdInstance | undefined> {
  const present = await findInstance(rest, guest.name, progress.signal);
  if (present === undefined || isOurs(present, guest.spec)) return present;
  throw new CloudletError("CONFLICT", `${rest.label} has a container ${guest.name} that is not ${guest.spec.id}`, {
    fix:
      present.config[keys.id] === undefined
        ? `import it (\`pulumi import cloudlet:index:Cloudlet NAME ${guest.spec.id}@NODE/lxd\`), rename or remove it, or choose another name`
        : "remove or rename that container, or choose another name",
  });
}

/** Limits, environment, network and volumes. */
export async function syncInstance(rest: Rest, guest: Guest, { instance, progress }: Observed): Promise<void> {
  await syncVolumes(guest, instance);
  const wanted = merge(instance, toLxd(guest, instance.devices.root?.pool ?? "default"));
  if (wanted === undefined) return;
  const body = { ...wanted, architecture: instance.architecture, profiles: [], description: "" };
  await perform(
    rest,
    { method: "PUT", path: `/1.0/instances/${guest.name}`, body, what: `update ${guest.name}` },
    waitOf(progress, deadlines.update),
  );
}

export async function syncVolumes(guest: Guest, instance: LxdInstance): Promise<void> {
  for (const volume of guest.volumes) await shiftVolume(volume.hostPath, rootIdOf(instance));
}

/** Brings the declared version into a running container; false = it was there. */
export async function syncBuild(rest: Rest, guest: Guest, { instance, progress }: Observed): Promise<boolean> {
  const applied = instance.config[keys.build] ?? "";
  const wanted = guest.spec.build === undefined ? "" : buildKey(guest.spec.build);
  if (applied === wanted) return false;
  if (wanted === "") await stopApp(rest, guest, progress);
  else await applyBuild(rest, guest, progress);
  await setConfig(rest, guest, { config: { [keys.build]: wanted }, progress });
  return true;
}

/** Sets some configuration keys and leaves the others. */
export async function setConfig(rest: Rest, guest: Guest, { config, progress }: { config: Config; progress: Progress }): Promise<void> {
  await perform(
    rest,
    { method: "PATCH", path: `/1.0/instances/${guest.name}`, body: { config }, what: `mark ${guest.name}` },
    waitOf(progress, deadlines.update),
  );
}

/** `stop` asks the guest and ends it after ten seconds; `kill` ends it at once. */
export async function change(
  rest: Rest,
  guest: Guest,
  { action, progress }: { action: "start" | "stop" | "kill" | "freeze" | "unfreeze"; progress: Progress },
): Promise<void> {
  const put = (body: Record<string, unknown>, deadline: number) =>
    perform(
      rest,
      { method: "PUT", path: `/1.0/instances/${guest.name}/state`, body, what: `${action} ${guest.name}` },
      waitOf(progress, deadline),
    );
  if (action === "start")
    await put({ action: "start", timeout: 30, force: false }, deadlines.start).catch((error: unknown) => withConsole(rest, guest, error));
  else if (action === "freeze" || action === "unfreeze") await put({ action, timeout: 10, force: false }, deadlines.freeze);
  else await endInstance(rest, guest.name, { gentle: action === "stop", progress });
}

/** A container by its name, whoever made it. */
export async function endInstance(rest: Rest, name: string, { gentle, progress }: { gentle: boolean; progress: Progress }): Promise<void> {
  const put = (timeout: number, force: boolean) =>
    perform(
      rest,
      { method: "PUT", path: `/1.0/instances/${name}/state`, body: { action: "stop", timeout, force }, what: `stop ${name}` },
      waitOf(progress, deadlines.stop),
    );
  if (!(gentle && (await ended(put(stopSeconds, false))))) await ended(put(30, true));
  const left = await findInstance(rest, name, progress.signal);
  if (left === undefined) throw new CloudletError("NOT_FOUND", `${rest.label} has no longer a container ${name}`);
  if (stateOf(left) !== "stopped")
    throw new CloudletError("FAILED", `${rest.label}: ${name} does not stop`, { fix: "look at `lxc info` on the node" });
}

export async function stopInstance(rest: Rest, guest: Guest, progress: Progress): Promise<void> {
  await settle(rest, guest.name, progress);
  const state = stateOf(await mustHave(rest, guest, progress.signal));
  if (state === "stopped") return;
  await readConsole(rest, guest, false);
  if (state === "suspended") await change(rest, guest, { action: "unfreeze", progress });
  await change(rest, guest, { action: "stop", progress });
}

export async function removeInstance(rest: Rest, guest: Guest, progress: Progress): Promise<void> {
  await settle(rest, guest.name, progress);
  const instance = await findOurs(rest, guest, progress.signal);
  if (instance !== undefined) {
    if (stateOf(instance) !== "stopped") await change(rest, guest, { action: "kill", progress });
    await perform(
      rest,
      { method: "DELETE", path: `/1.0/instances/${guest.name}`, what: `remove ${guest.name}` },
      waitOf(progress, deadlines.remove),
    );
  }
}

async function makeInstance(
  rest: Rest,
  guest: Guest,
  { root, delta, progress }: { root: string; delta?: Blob; progress: Progress },
): Promise<void> {
  const pool = await ensurePool(rest, root, progress);
  const base = { digest: guest.spec.base.digest, path: guest.basePath };
  // the last guest of an image may be going while the next one comes
  await inTurn(imagesTurn, async () => {
    const fingerprint = await ensureImage(rest, { base, delta, directory: imagesDirectory(root) }, progress);
    progress.status(`creating container ${guest.name}`);
    const { config, devices } = toLxd(guest, pool);
    const marked = delta === undefined ? config : { ...config, [keys.delta]: delta.digest };
    const source = { type: "image", fingerprint };
    const body = { name: guest.name, type: "container", profiles: [], config: marked, devices, source };
    await perform(rest, { method: "POST", path: "/1.0/instances", body, what: `create ${guest.name}` }, waitOf(progress, deadlines.create));
  });
}

/** Where temporary files of images lie. */
export function imagesDirectory(root: string): string {
  return join(root, "lxd-images");
}

async function syncFiles(rest: Rest, guest: Guest, { instance, progress }: Observed): Promise<void> {
  const wanted = filesKey(guest.spec);
  if (instance.config[keys.files] === wanted) return;
  const files = { rest, guest: guest.name, signal: progress.signal };
  for (const file of guest.spec.files) {
    await makeParents(files, file.path);
    await writeFile(files, file.path, { uid: 0, gid: 0, mode: file.mode, content: Buffer.from(file.content, "base64") });
  }
  await setConfig(rest, guest, { config: { [keys.files]: wanted }, progress });
}

async function ended(stopping: Promise<unknown>): Promise<boolean> {
  try {
    await stopping;
    return true;
  } catch (error) {
    if (error instanceof CloudletError && error.code === "FAILED") return false;
    throw error;
  }
}

async function withConsole(rest: Rest, guest: Guest, error: unknown): Promise<never> {
  if (!(error instanceof CloudletError) || error.code !== "FAILED") throw error;
  const tail = (await readConsole(rest, guest, true).catch(() => "")).split("\n").slice(-10).join("\n").trim();
  throw new CloudletError("FAILED", tail === "" ? error.message : `${error.message}; console: ${tail}`, { cause: error });
}
