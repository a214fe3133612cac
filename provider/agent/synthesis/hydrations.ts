import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError, codeOf } from "../../core/errors.ts";
import { guestOf, isReady, requireOwner } from "../instances.ts";
import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceSpec } from "../protocol.ts";
import { consoleEnd } from "../ready.ts";
import type { InstanceRecord, SynthesisRecord } from "../records.ts";
import type { Services } from "../services.ts";
import type { Hydrating } from "./hydrating.ts";
import { noteFirstReply, startWhole, withSynthesis } from "./synthesise.ts";
import type { Hydration } from "./works.ts";

const lookMillis = 200;
const startMillis = 50;
const statusMillis = 2_000;
/** The hydrator has waited already before it calls a source silent. */
const patienceMillis = 500;
/** So that the guest has been ended, where it should be, before that is said. */
const graceMillis = 2_000;
const defaultHydrate = { timeoutSeconds: 600, onTimeout: "wait" } as const;

/** What does not pass in this time is told to whoever follows; it is tried again all the same. */
const troubleMillis = 20_000;
const pauseMillis = 1_000;

interface Watch {
  ended: Promise<void>;
  abort: AbortController;
  /** Since when its source has been silent. */
  waitingSince: number | undefined;
  /** undefined: not known, as an agent before this one may have held it. */
  held: boolean | undefined;
  /** Why looking after it fails, and since when. */
  trouble: { since: number; error: unknown } | undefined;
}

/** Looks after guests that were started before their overlay had arrived, whoever asks for them meanwhile, until nothing of them depends on another node. */
export class Hydrations implements Hydrating {
  readonly #services: () => Services;
  readonly #watches = new Map<string, Watch>();
  #closed = false;

  constructor(services: () => Services) {
    this.#services = services;
  }

  /** Begins to look after a cloudlet, unless that is done already. */
  watch(id: string): void {
    this.#watched(id);
  }

  #watched(id: string): Watch {
    const known = this.#watches.get(id);
    if (known !== undefined) return known;
    const watch: Watch = {
      ended: Promise.resolve(),
      abort: new AbortController(),
      ...{ waitingSince: undefined, held: undefined, trouble: undefined },
    };
    if (this.#closed) watch.abort.abort();
    watch.ended = this.#look(id, watch).finally(() => this.#watches.delete(id));
    // whoever follows hears of it
    watch.ended.catch(() => undefined);
    this.#watches.set(id, watch);
    return watch;
  }

  /** Stops looking after a cloudlet; its guest and its hydrator stay as they are. */
  async end(id: string): Promise<void> {
    const watch = this.#watches.get(id);
    watch?.abort.abort();
    await watch?.ended.catch(() => undefined);
  }

  close(): void {
    this.#closed = true;
    for (const watch of this.#watches.values()) watch.abort.abort();
  }

  /** Waits until so much of its overlay is here that a cloudlet can be resumed. */
  async startable({ id, hydrate = defaultHydrate }: InstanceSpec, overlay: string, context: JobContext): Promise<void> {
    const { layers } = this.#services();
    let heardAt = Date.now();
    for (let said = Date.now(); ; await sleep(startMillis, undefined, { signal: context.signal })) {
      const state = await layers.hydration(overlay);
      if (state?.startable === true || (await layers.isWhole(overlay))) return;
      if (state === undefined) await layers.serve(overlay, context);
      if (state?.state === "failed") throw unusable(id, state);
      if (state?.state === "coming") heardAt = Date.now();
      if (Date.now() - heardAt > hydrate.timeoutSeconds * 1000)
        throw silent(id, state, { ...hydrate, consequence: "starts once its first part is here" });
      if (Date.now() - said < statusMillis) continue;
      said = Date.now();
      context.status(`waiting for the first part of ${id}'s overlay${state?.state === "waiting" ? `: ${state.reason}` : ""}`);
    }
  }

  /** Waits until a cloudlet's overlay is whole. UNREACHABLE where its source is silent for longer than its policy allows. */
  async follow(id: string, context: JobContext): Promise<void> {
    const { hydrate = defaultHydrate, ready } = (await this.#hydrating(id))?.spec ?? {};
    const watch = this.#watched(id);
    // what was silent before anybody followed does not count
    const beganAt = Date.now();
    let [lookedAt, spentMillis] = [beganAt, 0];
    for (let said = 0; ;) {
      const ended = await Promise.race([watch.ended.then(() => true), sleep(lookMillis, false, { signal: context.signal })]);
      if (ended) return;
      const record = await this.#hydrating(id);
      // whole; a guest that has ended meanwhile is just being started again
      if (record === undefined) continue;
      if (watch.trouble !== undefined && Date.now() - watch.trouble.since > troubleMillis) throw watch.trouble.error;
      const state = await this.#services().layers.hydration(record.synthesis?.overlay ?? "");
      if (Date.now() - said > statusMillis) {
        said = Date.now();
        context.status(statusText(id, state, watch));
      }
      const sinceLook = Date.now() - lookedAt;
      lookedAt += sinceLook;
      if (watch.waitingSince === undefined) spentMillis += sinceLook;
      else if (Date.now() - Math.max(watch.waitingSince, beganAt) > hydrate.timeoutSeconds * 1000 + graceMillis)
        throw silent(id, state, { ...hydrate, consequence: consequences[hydrate.onTimeout] });
      if (ready !== undefined && record.synthesis?.firstReplyMillis === undefined && spentMillis > ready.timeoutSeconds * 1000)
        throw await this.#mute(record, ready.timeoutSeconds);
    }
  }

  async #mute(record: InstanceRecord, timeoutSeconds: number): Promise<CloudletError> {
    const { id, kind } = record.spec;
    const guest = await guestOf(this.#services(), record);
    const driver = await this.#services().hypervisors.driver(kind);
    const ended = await consoleEnd({ log: (lines) => driver.log(guest, lines) });
    return new CloudletError("TIMEOUT", `${id} runs from its overlay and was not ready within ${String(timeoutSeconds)} s; ${ended}`, {
      fix: "look at what the application waits for, or correct `ready`; then run `pulumi up` again",
    });
  }

  async #hydrating(id: string): Promise<(InstanceRecord & { synthesis: SynthesisRecord }) | undefined> {
    const record = await this.#services().records.read(id);
    const { synthesis } = record ?? {};
    return record !== undefined && synthesis?.hydrating === true ? { ...record, synthesis } : undefined;
  }

  /** A guest is looked after until nothing is missing: what fails is tried again, since its hypervisor may end at any moment. */
  async #look(id: string, watch: Watch): Promise<void> {
    const { signal } = watch.abort;
    for (let record = await this.#hydrating(id); record !== undefined; record = await this.#hydrating(id)) {
      signal.throwIfAborted();
      requireOwner(record);
      try {
        if (await this.#lookOnce(record, watch)) return;
        watch.trouble = undefined;
      } catch (error) {
        if (signal.aborted || codeOf(error) === "INTEGRITY") throw error;
        watch.trouble = { since: watch.trouble?.since ?? Date.now(), error };
      }
      await sleep(watch.trouble === undefined ? lookMillis : pauseMillis, undefined, { signal });
    }
    if (watch.trouble !== undefined) throw watch.trouble.error;
  }

  /** Whether nothing is missing any more. */
  async #lookOnce(record: InstanceRecord & { synthesis: SynthesisRecord }, watch: Watch): Promise<boolean> {
    const services = this.#services();
    const { overlay, firstReplyMillis } = record.synthesis;
    const driver = await services.hypervisors.driver(record.spec.kind);
    const opened: Opened = { record, driver, guest: await guestOf(services, record) };
    const state = await services.layers.hydration(overlay);
    // its guests read from it until they are settled, also when all is there
    if (state === undefined) await services.layers.serve(overlay, { signal: watch.abort.signal, status: () => undefined });
    if (await services.layers.isWhole(overlay)) {
      await this.#settle(opened, watch);
      return true;
    }
    // one that has answered goes on with what it has, held like one whose source is silent
    if (state?.state === "failed" && firstReplyMillis === undefined) throw unusable(record.spec.id, state);
    await this.#attend(opened, state, watch);
    return false;
  }

  /** One look: whether it answers by now, and whether it must be held, or ended, since its source is silent. */
  async #attend(opened: Opened, state: Hydration | undefined, watch: Watch): Promise<void> {
    const { record, driver, guest } = opened;
    const { id, hydrate = defaultHydrate } = record.spec;
    const waiting = state?.state === "waiting" || state?.state === "failed";
    watch.waitingSince = waiting ? (watch.waitingSince ?? Date.now()) : undefined;
    if ((await driver.observe(guest)) !== "running") return;
    const silentMillis = watch.waitingSince === undefined ? 0 : Date.now() - watch.waitingSince;
    if (hydrate.onTimeout === "boot" && silentMillis > hydrate.timeoutSeconds * 1000) return this.#giveUpMemory(opened, watch);
    const hold = silentMillis > patienceMillis;
    if (hold !== watch.held) {
      await driver.synthesis?.hold(guest, hold);
      watch.held = hold;
    }
    if (!hold && record.synthesis?.firstReplyMillis === undefined && (await isReady(opened))) await noteFirstReply(this.#services(), id);
  }

  /** From here on it waits for its disk alone, and boots from it. */
  async #giveUpMemory({ record, driver, guest }: Opened, watch: Watch): Promise<void> {
    const { id, hydrate } = record.spec;
    const reason = `its source was silent for ${String(hydrate?.timeoutSeconds)} s, so it boots from its disk`;
    await this.#services().records.update(id, (it) =>
      it.synthesis === undefined ? it : { ...it, synthesis: { ...it.synthesis, rung: "boot", reason } },
    );
    await driver.stop(guest, { signal: watch.abort.signal, status: () => undefined });
    watch.held = false;
  }

  /** Everything is here: the guest reads local files from now on, and one that has ended meanwhile is started again. */
  async #settle({ record, driver, guest }: Opened, watch: Watch): Promise<void> {
    const services = this.#services();
    const { synthesis, spec } = record;
    const progress = { signal: watch.abort.signal, status: () => undefined };
    if (synthesis === undefined) return;
    const final = await services.layers.hydration(synthesis.overlay);
    const running = (await driver.observe(guest)) === "running";
    if (running) await driver.synthesis?.settle(guest, progress);
    if (running && watch.held !== false) await driver.synthesis?.hold(guest, false);
    await services.records.update(spec.id, (it) => {
      if (it.synthesis?.hydrating !== true) return it;
      const { bytesTransferred, beganAt } = it.synthesis;
      const whole = { wholeMillis: Date.now() - beganAt, bytesTransferred: bytesTransferred + (final?.transferred ?? 0) };
      return withSynthesis(it, { ...it.synthesis, ...whole, hydrating: false });
    });
    await this.#endHydrator(synthesis.overlay);
    if (!running && spec.state === "running") await startWhole(services, spec.id, progress);
  }

  /** Not while another guest still reads from it. */
  async #endHydrator(overlay: string): Promise<void> {
    const services = this.#services();
    const others = (await services.records.list()).filter(({ synthesis }) => synthesis?.overlay === overlay && synthesis.hydrating);
    if (others.length === 0) await services.layers.settle(overlay);
  }
}

const consequences = { wait: "is held still until it answers", boot: "was ended and boots from its disk once that is here" };

function statusText(id: string, state: Hydration | undefined, { waitingSince, held }: Watch): string {
  const done = state === undefined ? "" : ` (${mb(state.present)} of ${mb(state.total)} MB)`;
  if (waitingSince === undefined) return `the overlay of ${id} is coming${done}`;
  return `the source of ${id}'s overlay is silent${done}${held === true ? "; the cloudlet is held still meanwhile" : ""}`;
}

function silent(
  id: string,
  state: Hydration | undefined,
  { timeoutSeconds, consequence }: { timeoutSeconds: number; consequence: string },
): CloudletError {
  const done = state === undefined ? "" : ` with ${mb(state.present)} of ${mb(state.total)} MB here`;
  return new CloudletError(
    "UNREACHABLE",
    `the source of ${id}'s overlay has been silent for ${String(timeoutSeconds)} s${done}: ${state?.reason ?? "no reason is known"}; the cloudlet ${consequence}`,
    { fix: "bring the node that has the overlay back, then run `pulumi up` again" },
  );
}

function unusable(id: string, { reason }: Hydration): CloudletError {
  return new CloudletError("INTEGRITY", `the overlay of ${id} cannot be used: ${reason}`, {
    fix: "put an undamaged copy of the overlay on a node that is named as its source",
  });
}

const mb = (bytes: number): string => (bytes / 1e6).toFixed(1);
