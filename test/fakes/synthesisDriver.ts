import { CloudletError } from "../../provider/core/errors.ts";
import type { Machine } from "../../provider/agent/protocol.ts";
import type { Frozen, Guest, Origin, Synthesis } from "../../provider/hypervisors/types.ts";
import { FakeDriver } from "./driver.ts";

/** A fake hypervisor whose guests are resumed, frozen and held; it keeps what each of them reads from. */
export class SynthesisDriver extends FakeDriver {
  /** What a guest reads: `nbd` while its layer arrives, then `files`, or `disk` where it was booted. */
  readonly reads = new Map<string, "nbd" | "files" | "disk">();
  readonly held = new Set<string>();
  accelerator: "kvm" | "tcg" = "tcg";
  /** What a guest waits for before it runs on. */
  whileResumed: () => Promise<void> = () => Promise.resolve();

  readonly synthesis: Synthesis = {
    machine: (resources) => Promise.resolve(this.machineOf(resources)),
    startForFreeze: (guest) => this.#note("startForFreeze", () => this.#put(guest, "running")),
    openConsole: () => Promise.reject(new CloudletError("UNREACHABLE", "this guest has no console")),
    freeze: (guest) =>
      this.#note("freeze", (): Frozen => {
        this.#put(guest, "stopped");
        const at = (name: string): string => `${guest.directory}/${name}`;
        return {
          disk: at("disk"),
          memory: at("memory"),
          state: at("state"),
          seed: at("seed"),
          machine: this.machineOf(guest.spec.resources),
        };
      }),
    resume: async (guest, origin: Origin) => {
      await this.whileResumed();
      await this.#note("resume", () => {
        this.#put(guest, "running");
        this.launched.set(guest.name, this.settingsOf(guest));
        this.reads.set(guest.name, "nbd" in origin.disk ? "nbd" : "files");
      });
    },
    makeOver: (guest) => this.#note("makeOver", () => this.#put(guest, "stopped")),
    settle: (guest) => this.#note("settle", () => void this.reads.set(guest.name, "files")),
    hold: (guest, held) =>
      this.#note(held ? "hold" : "let go", () => void (held ? this.held.add(guest.name) : this.held.delete(guest.name))),
  };

  machineOf({ cores, memoryMib }: { cores: number; memoryMib: number }): Machine {
    return { type: "pc-q35-6.2", accelerator: this.accelerator, cpu: { model: "qemu64", flags: [] }, cores, memoryMib };
  }

  override async start(guest: Guest): Promise<void> {
    await super.start(guest);
    this.reads.set(guest.name, "disk");
  }

  override async remove(guest: Guest): Promise<void> {
    await super.remove(guest);
    this.reads.delete(guest.name);
    this.held.delete(guest.name);
  }

  /** As when QEMU is killed. */
  kill(name: string): void {
    const guest = this.guests.get(name);
    if (guest !== undefined) guest.state = "stopped";
    this.held.delete(name);
  }

  #put(guest: Guest, state: "running" | "stopped"): void {
    this.guests.set(guest.name, { contents: "new", settings: "", ...this.guests.get(guest.name), state, basePath: guest.basePath });
  }

  async #note<T>(name: string, work: () => T): Promise<T> {
    await this.refuse(name);
    this.calls.push(name);
    return work();
  }
}
