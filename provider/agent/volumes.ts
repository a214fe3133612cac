import { mkdir, readdir, rename, rm } from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { CloudletError } from "../core/errors.ts";
import { exists, readJson, syncDirectory, writeDurably } from "./durable.ts";
import type { Hypervisors } from "./hypervisors.ts";
import type { JobContext } from "./jobs.ts";
import { guestName, isHere, volumeSpecSchema, volumeStatusSchema } from "./protocol.ts";
import type { InstanceSpec, VolumeSpec, VolumeStatus } from "./protocol.ts";
import type { Records } from "./records.ts";

export const volumeRecordSchema = z.object({ spec: volumeSpecSchema, place: volumeStatusSchema.shape.place, peer: z.string().optional() });
export type VolumeRecord = z.infer<typeof volumeRecordSchema>;

export interface VolumesOptions {
  /** `…/volumes` */
  directory: string;
  records: Records;
  hypervisors: Hypervisors;
}

/** State that outlives a cloudlet: a record and data per volume. What it is attached to follows from the cloudlets' records. */
export class Volumes {
  readonly #options: VolumesOptions;

  constructor(options: VolumesOptions) {
    this.#options = options;
  }

  read(id: string): Promise<VolumeRecord | undefined> {
    return readJson(path.join(this.#directoryOf(id), "record.json"), volumeRecordSchema);
  }

  async write(record: VolumeRecord): Promise<void> {
    const directory = this.#directoryOf(record.spec.id);
    await mkdir(directory, { recursive: true, mode: 0o755 });
    await syncDirectory(this.#options.directory);
    await writeDurably(path.join(directory, "record.json"), `${JSON.stringify(record, null, 2)}\n`, 0o600);
  }

  /** The file or directory that a guest attaches. */
  dataPath(id: string): string {
    return path.join(this.#directoryOf(id), "data");
  }

  async list(): Promise<VolumeRecord[]> {
    const found: VolumeRecord[] = [];
    for (const name of (await readdir(this.#options.directory).catch(() => [])).sort()) {
      const record =
        name === "retained" ? undefined : await readJson(path.join(this.#options.directory, name, "record.json"), volumeRecordSchema);
      if (record !== undefined) found.push(record);
    }
    return found;
  }

  async status(id: string): Promise<VolumeStatus | undefined> {
    const record = await this.read(id);
    if (record === undefined) return undefined;
    const attachedTo = await this.#attachedTo(id);
    return { ...record, ...(attachedTo === undefined ? {} : { attachedTo }) };
  }

  /** `awaited`: the volume is declared here, and its data comes with a cloudlet that moves here. */
  async apply(spec: VolumeSpec, awaited: boolean, context: JobContext): Promise<VolumeStatus> {
    const existing = await this.read(spec.id);
    if (existing !== undefined && existing.spec.owner !== spec.owner)
      throw new CloudletError("CONFLICT", `volume ${spec.id} belongs to ${existing.spec.owner}`);
    if (existing !== undefined && existing.place === "here" && existing.spec.kind !== spec.kind) {
      throw new CloudletError("REFUSED", `volume ${spec.id} holds data for ${existing.spec.kind} and cannot become ${spec.kind} in place`, {
        fix: "replace the volume",
      });
    }
    if (existing !== undefined && existing.place === "here" && spec.sizeMib < existing.spec.sizeMib) {
      throw new CloudletError(
        "REFUSED",
        `volume ${spec.id} cannot shrink from ${String(existing.spec.sizeMib)} to ${String(spec.sizeMib)} MiB`,
        { fix: "keep its size, or replace the volume" },
      );
    }
    if (existing?.place !== "here" && awaited) {
      await this.write({ ...existing, spec, place: "awaited" });
      context.step("recorded");
    } else {
      await this.#make(spec, context);
    }
    const status = await this.status(spec.id);
    if (status === undefined) throw new CloudletError("BUG", `volume ${spec.id} was recorded and cannot be read back`);
    return status;
  }

  /** `retain` keeps the data aside and forgets the volume; the same id finds it again when it is declared anew. */
  async remove(id: string, options: { owner: string; retain: boolean }, context: JobContext): Promise<void> {
    const existing = await this.read(id);
    if (existing !== undefined) {
      if (existing.spec.owner !== options.owner)
        throw new CloudletError("CONFLICT", `volume ${id} belongs to ${existing.spec.owner}, not to ${options.owner}`);
      const attachedTo = await this.#attachedTo(id);
      if (attachedTo !== undefined)
        throw new CloudletError("REFUSED", `volume ${id} is attached to ${attachedTo}`, { fix: "detach it or remove the cloudlet first" });
      if (options.retain && existing.place === "here") {
        const retained = path.join(this.#options.directory, "retained");
        await mkdir(retained, { recursive: true, mode: 0o755 });
        const stamp = new Date().toISOString().replaceAll(/[^0-9TZ]/g, "");
        await rename(this.#directoryOf(id), path.join(retained, `${guestName(id)}-${stamp}`));
        await syncDirectory(retained);
        context.step("retained");
      }
    }
    await rm(path.join(this.#directoryOf(id), "record.json"), { force: true });
    await rm(this.#directoryOf(id), { recursive: true, force: true });
    context.step("removed");
  }

  /** The volumes of a cloudlet as its driver wants them; an error where one cannot be attached. */
  async attach(spec: InstanceSpec): Promise<{ id: string; path: string; hostPath: string }[]> {
    for (const { id } of spec.volumes) {
      const record = await this.read(id);
      if (record === undefined)
        throw new CloudletError("REFUSED", `${spec.id} wants volume ${id}, which is not declared on this node`, {
          fix: "declare the volume on the cloudlet's node",
        });
      if (record.place !== "here")
        throw new CloudletError(
          "REFUSED",
          `${spec.id} wants volume ${id}, which is ${record.place === "gone" ? `at ${record.peer ?? "another node"} now` : "still awaited here"}`,
          { fix: "move the cloudlet that has it attached to this node" },
        );
      if (record.spec.owner !== spec.owner)
        throw new CloudletError("CONFLICT", `${spec.id} wants volume ${id}, which belongs to ${record.spec.owner}`);
      if (record.spec.kind !== spec.kind)
        throw new CloudletError("REFUSED", `${spec.id} is of kind ${spec.kind} and wants volume ${id} of kind ${record.spec.kind}`, {
          fix: "declare the volume with the cloudlet's kind",
        });
      const other = await this.#attachedTo(id);
      if (other !== undefined && other !== spec.id)
        throw new CloudletError("CONFLICT", `${spec.id} wants volume ${id}, which is attached to ${other}`, {
          fix: "detach it there first",
        });
    }
    return spec.volumes.map((volume) => ({ ...volume, hostPath: this.dataPath(volume.id) }));
  }

  async #make(spec: VolumeSpec, context: JobContext): Promise<void> {
    const driver = await this.#options.hypervisors.driver(spec.kind);
    await this.#adoptRetained(spec);
    // the record comes last: a volume that is `here` has its data
    await mkdir(this.#directoryOf(spec.id), { recursive: true, mode: 0o755 });
    context.status(`making volume ${spec.id}`);
    await driver.createVolume(this.dataPath(spec.id), spec.sizeMib, context);
    context.step("created");
    await this.write({ spec, place: "here" });
    context.step("recorded");
  }

  async #adoptRetained(spec: VolumeSpec): Promise<void> {
    const retained = path.join(this.#options.directory, "retained");
    const prefix = `${guestName(spec.id)}-`;
    const newest = (await readdir(retained).catch(() => []))
      .filter((name) => name.startsWith(prefix))
      .sort()
      .at(-1);
    if (newest === undefined || (await exists(this.#directoryOf(spec.id)))) return;
    const record = await readJson(path.join(retained, newest, "record.json"), volumeRecordSchema);
    if (record === undefined) return;
    if (record.spec.owner !== spec.owner)
      throw new CloudletError("CONFLICT", `data of volume ${spec.id} was retained for ${record.spec.owner}`, {
        fix: `choose another name, or remove ${path.join(retained, newest)} on the node`,
      });
    if (record.spec.kind !== spec.kind)
      throw new CloudletError("REFUSED", `the retained data of volume ${spec.id} is for ${record.spec.kind}, not for ${spec.kind}`, {
        fix: `keep the kind, or remove ${path.join(retained, newest)} on the node`,
      });
    await rename(path.join(retained, newest), this.#directoryOf(spec.id));
    await syncDirectory(this.#options.directory);
  }

  async #attachedTo(id: string): Promise<string | undefined> {
    const records = await this.#options.records.list();
    return records.find((record) => isHere(record) && record.spec.volumes.some((volume) => volume.id === id))?.spec.id;
  }

  #directoryOf(id: string): string {
    return path.join(this.#options.directory, guestName(id));
  }
}
