import { rm } from "node:fs/promises";
import path from "node:path";
import { z } from "zod";
import { CloudletError } from "../core/errors.ts";
import { abilitiesOf } from "../hypervisors/types.ts";
import type { Driver } from "../hypervisors/types.ts";
import { readJson, syncDirectory, writeDurably } from "./durable.ts";
import type { JobContext } from "./jobs.ts";
import { hypervisorSpecSchema, isHere } from "./protocol.ts";
import type { HypervisorSpec, HypervisorStatus, Kind } from "./protocol.ts";
import type { Records } from "./records.ts";

/** Stacks may share a gateway, and so its one hypervisor. */
const recordSchema = hypervisorSpecSchema.omit({ owner: true }).extend({ owners: z.array(z.string()) });
type HypervisorRecord = z.infer<typeof recordSchema>;

export interface HypervisorsOptions {
  root: string;
  records: Records;
  createDriver(spec: HypervisorSpec): Promise<Driver>;
}

type Description = Awaited<ReturnType<Driver["describe"]>>;

/** The one hypervisor of this node. */
export class Hypervisors {
  readonly #options: HypervisorsOptions;
  #driver: { key: string; driver: Driver } | undefined;

  constructor(options: HypervisorsOptions) {
    this.#options = options;
  }

  current(): Promise<HypervisorRecord | undefined> {
    return readJson(this.#file(), recordSchema);
  }

  async status(): Promise<HypervisorStatus | undefined> {
    const spec = await this.current();
    if (spec === undefined) return undefined;
    const { version, accelerator, machineTypes } = await this.describe();
    return {
      kind: spec.kind,
      owners: spec.owners,
      version,
      accelerator,
      machineTypes,
      abilities: [...abilitiesOf[spec.kind]],
      cloudlets: await this.#owned(),
    };
  }

  /** The driver for cloudlets of this kind; REFUSED where the node has another kind, or none. */
  async driver(kind: Kind): Promise<Driver> {
    const spec = await this.current();
    if (spec === undefined)
      throw new CloudletError("REFUSED", `this node has no hypervisor, so it cannot run a cloudlet of kind ${kind}`, {
        fix: "declare a Hypervisor on this node",
      });
    if (spec.kind !== kind)
      throw new CloudletError("REFUSED", `this node's hypervisor is ${spec.kind}, so it cannot run a cloudlet of kind ${kind}`, {
        fix: "choose a hypervisor of the cloudlet's kind",
      });
    const key = JSON.stringify([spec.kind, spec.lxd]);
    if (this.#driver?.key !== key) {
      this.#driver = { key, driver: await this.#options.createDriver({ ...spec, owner: "" }) };
    }
    return this.#driver.driver;
  }

  async describe(): Promise<Description> {
    const spec = await this.current();
    if (spec === undefined) return { version: "", accelerator: "none", machineTypes: [] };
    return (await this.driver(spec.kind)).describe();
  }

  async apply(spec: HypervisorSpec, context: JobContext): Promise<HypervisorStatus> {
    const existing = await this.current();
    if (existing !== undefined && existing.kind !== spec.kind) {
      throw new CloudletError("REFUSED", `this node already has a hypervisor of kind ${existing.kind}; a node has exactly one`, {
        fix: "remove that hypervisor first",
      });
    }
    context.status(`looking for ${spec.kind === "kvm" ? "QEMU" : "LXD"}`);
    // a hypervisor that does not answer is not recorded
    const driver = await this.#options.createDriver(spec);
    await driver.describe();
    const { owner, ...rest } = spec;
    await this.#write({ ...rest, owners: [...new Set([...(existing?.owners ?? []), owner])] });
    context.step("recorded");
    const status = await this.status();
    if (status === undefined) throw new CloudletError("BUG", "the hypervisor was recorded and cannot be read back");
    return status;
  }

  async remove(owner: string, context: JobContext): Promise<void> {
    const existing = await this.current();
    if (existing === undefined || !existing.owners.includes(owner)) return;
    const others = existing.owners.filter((other) => other !== owner);
    const inTheWay = (await this.#options.records.list()).filter(
      (record) => isHere(record) && (others.length === 0 || record.spec.owner === owner),
    );
    if (inTheWay.length > 0) {
      throw new CloudletError("REFUSED", `cloudlets are on this hypervisor: ${inTheWay.map((record) => record.spec.id).join(", ")}`, {
        fix: "remove or move them first",
      });
    }
    if (others.length > 0) await this.#write({ ...existing, owners: others });
    else await this.uninstall(context);
    context.step("removed");
  }

  async uninstall(context: JobContext): Promise<void> {
    const existing = await this.current();
    if (existing === undefined) return;
    context.status(`removing what was set up for ${existing.kind}`);
    await (await this.driver(existing.kind)).uninstall(context);
    await rm(this.#file(), { force: true });
    await syncDirectory(this.#options.root);
    this.#driver = undefined;
  }

  async #owned(): Promise<string[]> {
    return (await this.#options.records.list()).filter((record) => record.ownership.role === "owner").map((record) => record.spec.id);
  }

  #write(record: HypervisorRecord): Promise<void> {
    return writeDurably(this.#file(), `${JSON.stringify(record, null, 2)}\n`, 0o600);
  }

  #file(): string {
    return path.join(this.#options.root, "hypervisor.json");
  }
}
