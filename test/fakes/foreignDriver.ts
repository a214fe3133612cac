import { Readable } from "node:stream";
import type { Foreign } from "../../provider/agent/protocol.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import type { ForeignGuest, ForeignGuests, Guest, GuestState } from "../../provider/hypervisors/types.ts";
import { FakeDriver } from "./driver.ts";

/** A hypervisor that has guests of others, which may become cloudlets' guests. */
export class ForeignDriver extends FakeDriver {
  /** By their names; `takenBy` once they are a cloudlet's. */
  readonly others = new Map<string, ForeignGuest & { takenBy?: string }>();
  readonly images = new Map<string, string>();

  constructor() {
    super("lxd");
  }

  override observe(guest: Guest): Promise<GuestState | undefined> {
    const other = this.others.get(guest.name);
    return other !== undefined && other.takenBy !== guest.spec.id ? Promise.resolve(undefined) : super.observe(guest);
  }

  readonly foreign: ForeignGuests = {
    find: (name) => Promise.resolve(this.others.get(name)),
    openBase: (digest) => Promise.resolve(Readable.from([Buffer.from(this.images.get(digest) ?? "")])),
    take: (guest, foreign) => this.#take(guest, foreign),
    remove: (foreign) => {
      const there = this.others.get(foreign.name)?.uuid === foreign.uuid;
      if (there) this.others.delete(foreign.name);
      return Promise.resolve(there);
    },
  };

  async #take(guest: Guest, { name, uuid }: Foreign): Promise<void> {
    const other = this.others.get(name);
    if (other?.uuid !== uuid || guest.name !== name) throw new CloudletError("NOT_FOUND", `there is no ${name}`);
    this.calls.push("take");
    this.others.set(name, { ...other, takenBy: guest.spec.id });
    const contents = this.guests.get(name)?.contents ?? "theirs";
    this.guests.set(name, { state: "stopped", basePath: guest.basePath, settings: this.settingsOf(guest), contents });
    // when it is stopped, and not yet changed
    await this.refuse("taken");
  }
}
