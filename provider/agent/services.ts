import { mkdir } from "node:fs/promises";
import { cpus } from "node:os";
import path from "node:path";
import type { Driver } from "../hypervisors/types.ts";
import { Hypervisors } from "./hypervisors.ts";
import { KeyedLock } from "./keyedLock.ts";
import { FormerCopies } from "./moves/formerCopies.ts";
import { Handoffs } from "./moves/handoffs.ts";
import { Network } from "./network.ts";
import type { HypervisorSpec } from "./protocol.ts";
import { Records } from "./records.ts";
import { Store } from "./store.ts";
import type { Hydrating } from "./synthesis/hydrating.ts";
import { Kept, keptImageSchema, keptOverlaySchema, keptPreseedSchema } from "./synthesis/kept.ts";
import { Layers } from "./synthesis/layers.ts";
import { Offers } from "./synthesis/offers.ts";
import { StartQueue } from "./synthesis/startQueue.ts";
import type { Works } from "./synthesis/works.ts";
import { Volumes } from "./volumes.ts";
import type { Run } from "./process.ts";

/** Everything that the verbs work with. */
export interface Services {
  root: string;
  lock: KeyedLock;
  store: Store;
  records: Records;
  network: Pick<Network, "prepare" | "publish" | "teardown">;
  hypervisors: Hypervisors;
  volumes: Volumes;
  offers: Offers;
  handoffs: Handoffs;
  formerCopies: FormerCopies;
  run: Run;
  layers: Layers;
  works: Works;
  hydrations: Hydrating;
  starts: StartQueue;
  /** Guests that are there only while an overlay is built; none of them outlives the agent that began it. */
  builds: Records;
  images: Kept<typeof keptImageSchema>;
  overlays: Kept<typeof keptOverlaySchema>;
  /** What is held for cloudlets that may move here. */
  preseeds: Kept<typeof keptPreseedSchema>;
  /** Host ports on which programs of the node itself listen. */
  usedPorts(protocol: "tcp" | "udp"): Promise<ReadonlySet<number>>;
}

export interface ServicesOptions {
  root: string;
  run: Run;
  works: Works;
  createDriver(spec: HypervisorSpec): Promise<Driver>;
  createHydrations(services: () => Services): Hydrating;
  usedPorts(protocol: "tcp" | "udp"): Promise<ReadonlySet<number>>;
}

export async function createServices({ root, run, works, createDriver, createHydrations, usedPorts }: ServicesOptions): Promise<Services> {
  // hypervisor processes run as another user and must get through; what is secret has a mode of its own
  await mkdir(root, { recursive: true, mode: 0o711 });
  for (const name of ["store", "instances", "volumes", "layers", "builds"])
    await mkdir(path.join(root, name), { recursive: true, mode: 0o755 });
  const records = new Records(path.join(root, "instances"));
  const formerCopies = new FormerCopies(path.join(root, "former"));
  // whatever is only worth something goes before anything is refused
  const store = new Store(path.join(root, "store"), () => formerCopies.expire(0));
  await store.clean();
  const hypervisors = new Hypervisors({ root, records, createDriver });
  const lock = new KeyedLock();
  const builds = new Records(path.join(root, "builds"));
  const services: Services = {
    root,
    lock,
    store,
    records,
    network: withBuilds(new Network(path.join(root, "network"), run), builds),
    hypervisors,
    volumes: new Volumes({ directory: path.join(root, "volumes"), records, hypervisors }),
    run,
    works,
    layers: new Layers({ root, store, lock, works }),
    hydrations: createHydrations(() => services),
    starts: new StartQueue(cpus().length),
    builds,
    offers: new Offers(path.join(root, "agent", "offers.json")),
    handoffs: new Handoffs(path.join(root, "handoffs"), lock),
    formerCopies,
    images: new Kept(path.join(root, "kept", "images"), keptImageSchema),
    overlays: new Kept(path.join(root, "kept", "overlays"), keptOverlaySchema),
    preseeds: new Kept(path.join(root, "kept", "preseeds"), keptPreseedSchema),
    usedPorts,
  };
  return services;
}

/** Guests of builds have an address too, whoever publishes meanwhile. */
function withBuilds(network: Network, builds: Records): Services["network"] {
  return {
    prepare: async (records) => network.prepare([...records, ...(await builds.list())]),
    publish: async (records) => network.publish([...records, ...(await builds.list())]),
    teardown: () => network.teardown(),
  };
}
