import type { JobContext } from "../jobs.ts";
import type { Services } from "../services.ts";
import { blobsOf } from "../synthesis/references.ts";
import type { VerbTable } from "../verbs.ts";
import { MoveSource } from "./source.ts";
import { MoveTarget, type TargetOptions } from "./target.ts";

const resumeEveryMillis = 5_000;
// a longer one would end at once
const longestTimerMillis = 2 ** 31 - 1;

/** The moves of one agent: their verbs, and what goes on without anybody asking. */
export interface Moves {
  verbs: VerbTable;
  /** Goes on with what a restart or a lost link cut off, now and then again until it is done. */
  resume(log: (text: string) => void): Promise<void>;
  close(): void;
}

export function createMoves(services: Services, options: TargetOptions): Moves {
  const source = new MoveSource(services);
  const target = new MoveTarget(services, options);
  const ended = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  return {
    verbs: verbsOf(source, target),
    async resume(log) {
      const context: JobContext = { signal: ended.signal, step: () => {}, status: log };
      await target.resume(context);
      const again = (): void => {
        timer = setTimeout(() => {
          Promise.all([source.resume(context), target.reopen(context)])
            .catch((error: unknown) => log(String(error)))
            .finally(again);
        }, resumeEveryMillis);
      };
      await source.resume(context);
      again();
    },
    close() {
      ended.abort();
      clearTimeout(timer);
      target.close();
    },
  };
}

function verbsOf(source: MoveSource, target: MoveTarget): VerbTable {
  return {
    "move.prepare": {
      keys: ({ spec }) => [`instance:${spec.id}`],
      perform: (_services, args, context) => target.prepare(args, context),
    },
    "move.run": {
      keys: ({ id }) => [`instance:${id}`],
      perform: (_services, args, context) => source.run(args, context),
    },
    "hypervisor.remove": {
      keys: () => [],
      async perform(all, { owner }, context) {
        // a copy that never became this node's own must not keep its hypervisor; its owner has the original
        for (const { spec, ownership } of await all.records.list()) {
          if (ownership.role !== "incoming" || spec.owner !== owner) continue;
          await all.lock.run(`instance:${spec.id}`, () => target.cancel(spec.id, context));
        }
        await all.lock.run("hypervisor", () => all.hypervisors.remove(owner, context), context.signal);
        return {};
      },
    },
    "blobs.offer": {
      keys: () => [],
      async perform(all, { digests, seconds }, context) {
        const offered = new Set<string>();
        for (const digest of digests) for (const part of await blobsOf(all, digest)) offered.add(part);
        // one that is not here must be known before anybody relies on it
        for (const digest of offered) await all.store.path(digest);
        const reached = await target.open();
        const token = await all.offers.give([...offered], seconds);
        setTimeout(() => void target.closeWhenIdle().catch(() => undefined), Math.min(seconds * 1000 + 1_000, longestTimerMillis)).unref();
        context.step("offered");
        return { ...reached, token };
      },
    },
    "move.cancel": {
      keys: ({ id }) => [`instance:${id}`],
      async perform(_services, { id }, context) {
        await target.cancel(id, context);
        return {};
      },
    },
  };
}
