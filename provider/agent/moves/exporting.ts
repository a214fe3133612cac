import { createWriteStream } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import type { Ahead } from "../../hypervisors/types.ts";
import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { Services } from "../services.ts";
import { framesOf } from "./assembly.ts";
import { outgoingDirectory } from "./copies.ts";
import { volumePartName } from "./making.ts";
import type { Format, Recipe } from "./recipe.ts";

/** A file that is to be sent. */
export interface FilePart {
  name: string;
  path: string;
  format: Format;
}

/** Stops the guest; what it consists of then, as files. */
export async function exportStopped(
  services: Services,
  opened: Opened,
  { mode, context }: { mode: "cold" | "state"; context: JobContext },
): Promise<FilePart[]> {
  const { record, driver, guest } = opened;
  const { id, kind, state, stateFiles } = record.spec;
  const directory = outgoingDirectory(services, id);
  await mkdir(directory, { recursive: true });
  const parts: FilePart[] = [];
  if (mode === "state" && stateFiles.length > 0) {
    context.status(`copying the state of ${id}`);
    const path = join(directory, "state.tar");
    await pipeline(await driver.exportState(guest, context), createWriteStream(path));
    parts.push({ name: "state.tar", path, format: "tar" });
  }
  context.status(`stopping ${id}`);
  // a suspended guest of QEMU travels as it is: its memory is a file
  if (state !== "suspended" || mode === "state" || kind === "lxd") await driver.stop(guest, context);
  await services.handoffs.note(id, { type: "paused" });
  context.step("stopped");
  if (mode === "cold") parts.push(...(await driver.exportParts(guest, context)));
  for (const index of guest.volumes.keys()) {
    const format = mode === "cold" && kind === "kvm" ? "raw" : "tar";
    parts.push(await exportVolume(services, opened, { index, format, context }));
  }
  context.step("exported");
  return parts;
}

/** What a container consists of while it runs on, as files, of which most will be the same once it stands still. What cannot be copied yet is left out. */
export async function exportRunning(
  services: Services,
  opened: Opened,
  { ahead, context }: { ahead: Ahead; context: JobContext },
): Promise<FilePart[]> {
  const { record, guest } = opened;
  const { id, volumes } = record.spec;
  const parts: FilePart[] = [];
  const attempt = async (what: string, copy: () => Promise<FilePart[]>): Promise<void> => {
    for (let isLast = false; ; isLast = true) {
      try {
        return void parts.push(...(await copy()));
      } catch (error) {
        if (context.signal.aborted) throw error;
        // a file that goes while it is read ends the copy, and may be gone the next time; room would still be missing
        if (isLast || codeOf(error) === "REFUSED")
          return context.status(`${what} is only copied once it stands still: ${describeError(error)}`);
        context.status(`copying ${what} once more: ${describeError(error)}`);
      }
    }
  };
  context.status(`copying ${id} while it runs`);
  await attempt(id, async () => {
    // the application needs room as well: LXD's own copy, and ours of that
    await services.store.requireSpace(2 * (await ahead.diskBytes(guest, context)));
    return ahead.exportParts(guest, context);
  });
  // where the container was not, a part of it alone would not be worth two ways
  if (parts.length === 0) return [];
  for (const [index, volume] of volumes.entries())
    await attempt(`volume ${volume.id}`, async () => [await exportVolume(services, opened, { index, format: "tar", context })]);
  return parts;
}

async function exportVolume(
  services: Services,
  { record, driver, guest }: Opened,
  { index, format, context }: { index: number; format: Format; context: JobContext },
): Promise<FilePart> {
  const volume = guest.volumes[index];
  if (volume === undefined) throw new CloudletError("BUG", `${record.spec.id} has no volume ${String(index)}`);
  const sizeMib = (await services.volumes.read(volume.id))?.spec.sizeMib ?? 0;
  const name = volumePartName(index, sizeMib, format);
  if (format === "raw") return { name, path: volume.hostPath, format };
  const directory = outgoingDirectory(services, record.spec.id);
  await mkdir(directory, { recursive: true });
  const path = join(directory, name);
  await pipeline(await driver.readVolume(volume.hostPath, context), createWriteStream(path), { signal: context.signal });
  return { name, path, format };
}

/** The pieces that are wanted, each once. */
export async function* allFrames(parts: FilePart[], wanted: Set<string>): AsyncGenerator<Buffer> {
  for (const part of parts) yield* framesOf(part.path, part.format, wanted);
}

export function bytesOf(recipes: Recipe[], wanted: ReadonlySet<string>): number {
  const sizes = new Map(recipes.flatMap(({ pieces }) => pieces));
  return [...wanted].reduce((sum, digest) => sum + (sizes.get(digest) ?? 0), 0);
}
