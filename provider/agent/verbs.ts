import { CloudletError } from "../core/errors.ts";
import { adoptInstance } from "./foreign.ts";
import { applyInstance, removeInstance, takeOffers } from "./instanceApply.ts";
import { bringTo, instanceStatus, openOwned } from "./instances.ts";
import type { JobContext, JobWork } from "./jobs.ts";
import { verbs } from "./protocol.ts";
import type { InstanceStatus, Verb, VerbArgs, VerbResult } from "./protocol.ts";
import type { Services } from "./services.ts";
import { copyState, takeCopy } from "./moves/stateCopies.ts";
import { buildOverlay } from "./synthesis/build.ts";
import { fetchBlobs } from "./synthesis/fetch.ts";
import { keepImage, releaseImage } from "./synthesis/images.ts";
import { keepOverlay, releaseOverlay, verifyOverlay } from "./synthesis/overlays.ts";
import { applyPreseed, releasePreseed } from "./synthesis/preseeds.ts";

export interface VerbHandler<V extends Verb> {
  /** What it touches: verbs that share a key run one after the other. */
  keys(args: VerbArgs<V>): string[];
  /** What those before it may be waiting for. */
  first?(services: Services, args: VerbArgs<V>, context: JobContext): Promise<void>;
  perform(services: Services, args: VerbArgs<V>, context: JobContext): Promise<VerbResult<V>>;
}

export type VerbTable = { [V in Verb]?: VerbHandler<V> };

const instanceKey = ({ id }: { id: string }): string[] => [`instance:${id}`];

const keptKey = ({ owner, name }: { owner: string; name: string }): string[] => [`kept:${owner}:${name}`];

const preseedKey = ({ owner, id }: { owner: string; id: string }): string[] => [`preseed:${owner}:${id}`];

/** What the agent does as a job. */
export const verbTable: VerbTable = {
  "hypervisor.apply": {
    keys: () => ["hypervisor"],
    async perform(services, spec, context) {
      const status = await services.hypervisors.apply(spec, context);
      await services.network.publish(await services.records.list());
      context.step("network");
      return status;
    },
  },
  "instance.apply": {
    keys: ({ spec }) => [`instance:${spec.id}`, ...spec.volumes.map(({ id }) => `volume:${id}`)],
    first: takeOffers,
    perform: applyInstance,
  },
  "instance.adopt": {
    keys: instanceKey,
    async perform(services, args, context) {
      await adoptInstance(services, args, context);
      return present(services, args.id);
    },
  },
  "instance.remove": {
    keys: instanceKey,
    async perform(services, args, context) {
      await removeInstance(services, args, context);
      return {};
    },
  },
  "instance.restart": {
    keys: instanceKey,
    async perform(services, { id }, context) {
      await services.hydrations.follow(id, context);
      const opened = await openOwned(services, id);
      if (opened.record.spec.state !== "running")
        throw new CloudletError("REFUSED", `cloudlet ${id} is declared ${opened.record.spec.state}, so it is not restarted`, {
          fix: "set its state to running",
        });
      await bringTo(opened, { state: "running", restart: true }, context);
      return present(services, id);
    },
  },
  "instance.snapshot": {
    keys: instanceKey,
    async perform(services, { id, snapshot }, context) {
      const { driver, guest } = await openOwned(services, id);
      context.status(`taking snapshot ${snapshot} of ${id}`);
      await driver.snapshot(guest, snapshot, context);
      context.step("snapshot");
      return {};
    },
  },
  "instance.restore": {
    keys: instanceKey,
    async perform(services, { id, snapshot }, context) {
      await services.hydrations.follow(id, context);
      const opened = await openOwned(services, id);
      context.status(`restoring ${id} to snapshot ${snapshot}`);
      await opened.driver.restore(opened.guest, snapshot, context);
      context.step("restored");
      await bringTo(opened, { state: opened.record.spec.state, restart: false }, context);
      return present(services, id);
    },
  },
  "volume.apply": {
    keys: ({ spec }) => [`volume:${spec.id}`],
    perform: (services, { spec, awaited }, context) => services.volumes.apply(spec, awaited, context),
  },
  "volume.remove": {
    keys: ({ id }) => [`volume:${id}`],
    async perform(services, { id, owner, retain }, context) {
      await services.volumes.remove(id, { owner, retain }, context);
      return {};
    },
  },
  "blobs.fetch": {
    keys: () => [],
    async perform(services, args, context) {
      const result = await fetchBlobs(services, args, context);
      context.step("fetched");
      return result;
    },
  },
  "overlay.build": { keys: keptKey, perform: buildOverlay },
  "overlay.keep": { keys: keptKey, perform: keepOverlay },
  "overlay.release": {
    keys: keptKey,
    async perform(services, args, context) {
      await releaseOverlay(services, args, context);
      return {};
    },
  },
  "overlay.verify": { keys: () => [], perform: verifyOverlay },
  "preseed.apply": { keys: preseedKey, perform: applyPreseed },
  "instance.copy": { keys: instanceKey, perform: (services, { id }, context) => copyState(services, id, context) },
  "preseed.copy": { keys: preseedKey, perform: takeCopy },
  "preseed.release": {
    keys: preseedKey,
    async perform(services, args, context) {
      await releasePreseed(services, args, context);
      return {};
    },
  },
  "image.keep": { keys: keptKey, perform: keepImage },
  "image.release": {
    keys: keptKey,
    async perform(services, args, context) {
      await releaseImage(services, args, context);
      return {};
    },
  },
};

/** The work of a request, with its arguments checked; INVALID where the verb or its arguments are unknown. */
export function workOf(services: Services, table: VerbTable, request: { verb: string; args?: unknown }): JobWork {
  const verb = Object.keys(verbs).find((name): name is Verb => name === request.verb);
  if (verb === undefined) throw new CloudletError("INVALID", `the agent knows no verb "${request.verb}"`);
  return typedWork(services, table, { verb, args: request.args });
}

function typedWork<V extends Verb>(services: Services, table: VerbTable, { verb, args }: { verb: V; args: unknown }): JobWork {
  const handler: VerbTable[V] = table[verb];
  if (handler === undefined) throw new CloudletError("INVALID", `this agent cannot do "${verb}"`);
  const parsed = verbs[verb].args.safeParse(args);
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => `${issue.path.join(".")}: ${issue.message}`).join("; ");
    throw new CloudletError("INVALID", `arguments of ${verb}: ${issues}`);
  }
  // the schema of this very verb has just accepted them
  const checked = parsed.data as VerbArgs<V>;
  return {
    verb,
    keys: handler.keys(checked),
    first: async (context) => handler.first?.(services, checked, context),
    perform: (context) => handler.perform(services, checked, context),
  };
}

async function present(services: Services, id: string): Promise<InstanceStatus> {
  const status = await instanceStatus(services, id);
  if (status === undefined) throw new CloudletError("NOT_FOUND", `cloudlet ${id} is not on this node`);
  return status;
}
