import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../../core/errors.ts";
import { guestOf, isReady, requireOwner } from "../instances.ts";
import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { InstanceRecord, SynthesisRecord } from "../records.ts";
import type { Services } from "../services.ts";
import type { Hydrating } from "./hydrating.ts";
import { noteFirstReply, startWhole, withSynthesis } from "./synthesise.ts";
import type { Hydration } from "./works.ts";

const lookMillis = 200;
const statusMillis = 2_000;
/** The hydrator has waited already before it calls a source silent. */
const patienceMillis = 500;
/** So that the guest has been ended, where it should be, before that is said. */
const graceMillis = 2_000;
const defaultHydrate = { timeoutSeconds: 600, onTimeout: "wait" } as const;

interface Watch {
  ended: Promise<void>;
  abort: AbortController;
  /** Since when its source has been silent. */
  waitingSince: number | undefined;
  held: boolean;
}

/** Looks after guests that were started before their overlay had arrived, whoever asks for them meanwhile, until nothing of them depends on another node. */
export class Hydrations implements Hydrating {
  readonly #services: () => Services;
  readonly #watches = new Map<string, Watch>();

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
    const watch: Watch = { ended: Promise.resolve(), abort: new AbortController(), waitingSince: undefined, held: false };
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
    for (const watch of this.#watches.values()) watch.abort.abort();
  }

  /** Waits until a cloudlet's overlay is whole. UNREACHABLE where its source is silent for longer than its policy allows. */
  async follow(id: string, context: JobContext): Promise<void> {
    const { hydrate = defaultHydrate, ready } = (await this.#hydrating(id))?.spec ?? {};
    const watch = this.#watched(id);
    let spentMillis = 0;
    for (let said = 0; ;) {
      const ended = await Promise.race([watch.ended.then(() => true), sleep(lookMillis, false, { signal: context.signal })]);
      const record = await this.#hydrating(id);
      if (ended || record === undefined) return;
      const state = await this.#services().layers.hydration(record.synthesis?.overlay ?? "");
      if (Date.now() - said > statusMillis) {
        said = Date.now();
        context.status(statusText(id, state, watch));
      }
      if (watch.waitingSince === undefined) spentMillis += lookMillis;
      else if (Date.now() - watch.waitingSince > hydrate.timeoutSeconds * 1000 + graceMillis) throw silent(id, state, hydrate);
      if (ready !== undefined && record.synthesis?.firstReplyMillis === undefined && spentMillis > ready.timeoutSeconds * 1000)
        throw mute(id, ready);
    }
  }

  async #hydrating(id: string): Promise<(InstanceRecord & { synthesis: SynthesisRecord }) | undefined> {
    const record = await this.#services().records.read(id);
    const { synthesis } = record ?? {};
    return record !== undefined && synthesis?.hydrating === true ? { ...record, synthesis } : undefined;
  }

  async #look(id: string, watch: Watch): Promise<void> {
    const services = this.#services();
    const { signal } = watch.abort;
    for (let record = await this.#hydrating(id); record !== undefined; record = await this.#hydrating(id)) {
      requireOwner(record);
      const driver = await services.hypervisors.driver(record.spec.kind);
      const opened: Opened = { record, driver, guest: await guestOf(services, record) };
      if (await services.layers.isWhole(record.synthesis.overlay)) return this.#settle(opened, watch);
      const state = await services.layers.hydration(record.synthesis.overlay);
      if (state === undefined) await services.layers.arrive(record.synthesis.overlay, [], { signal, status: () => undefined });
      // one that has answered goes on with what it has, held like one whose source is silent
      else if (state.state === "failed" && record.synthesis.firstReplyMillis === undefined) throw unusable(id, state);
      await this.#attend(opened, state, watch);
      await sleep(lookMillis, undefined, { signal });
    }
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
    if (running && watch.held) await driver.synthesis?.hold(guest, false);
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

function statusText(id: string, state: Hydration | undefined, { waitingSince, held }: Watch): string {
  const done = state === undefined ? "" : ` (${mb(state.present)} of ${mb(state.total)} MB)`;
  if (waitingSince === undefined) return `the overlay of ${id} is coming${done}`;
  return `the source of ${id}'s overlay is silent${done}${held ? "; the cloudlet is held still meanwhile" : ""}`;
}

function silent(
  id: string,
  state: Hydration | undefined,
  { timeoutSeconds, onTimeout }: { timeoutSeconds: number; onTimeout: string },
): CloudletError {
  const until = onTimeout === "wait" ? "is held still until it answers" : "was ended and boots from its disk once that is here";
  const done = state === undefined ? "" : ` with ${mb(state.present)} of ${mb(state.total)} MB here`;
  return new CloudletError(
    "UNREACHABLE",
    `the source of ${id}'s overlay has been silent for ${String(timeoutSeconds)} s${done}: ${state?.reason ?? "no reason is known"}; the cloudlet ${until}`,
    { fix: "bring the node that has the overlay back, then run `pulumi up` again" },
  );
}

function mute(id: string, { timeoutSeconds }: { timeoutSeconds: number }): CloudletError {
  return new CloudletError("TIMEOUT", `${id} runs from its overlay and was not ready within ${String(timeoutSeconds)} s`);
}

function unusable(id: string, { reason }: Hydration): CloudletError {
  return new CloudletError("INTEGRITY", `the overlay of ${id} cannot be used: ${reason}`, {
    fix: "put an undamaged copy of the overlay on a node that is named as its source",
  });
}

const mb = (bytes: number): string => (bytes / 1e6).toFixed(1);
