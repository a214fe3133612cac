import { createWriteStream } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { pipeline } from "node:stream/promises";
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
  { record, driver, guest }: Opened,
  { mode, context }: { mode: "cold" | "state"; context: JobContext },
): Promise<FilePart[]> {
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
  await mkdir(directory, { recursive: true });
  for (const [index, volume] of guest.volumes.entries()) {
    const sizeMib = (await services.volumes.read(volume.id))?.spec.sizeMib ?? 0;
    const format = mode === "cold" && kind === "kvm" ? "raw" : "tar";
    const name = volumePartName(index, sizeMib, format);
    const path = format === "raw" ? volume.hostPath : join(directory, name);
    if (format === "tar") await pipeline(await driver.readVolume(volume.hostPath, context), createWriteStream(path));
    parts.push({ name, path, format });
  }
  context.step("exported");
  return parts;
}

/** The pieces that are wanted, each once. */
export async function* allFrames(parts: FilePart[], wanted: Set<string>): AsyncGenerator<Buffer> {
  for (const part of parts) yield* framesOf(part.path, part.format, wanted);
}

export function bytesOf(recipes: Recipe[], wanted: ReadonlySet<string>): number {
  const sizes = new Map(recipes.flatMap(({ pieces }) => pieces));
  return [...wanted].reduce((sum, digest) => sum + (sizes.get(digest) ?? 0), 0);
}
