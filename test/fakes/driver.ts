import { Readable } from "node:stream";
import { CloudletError } from "../../provider/core/errors.ts";
import type { Driver, Guest, GuestState, Part, Progress } from "../../provider/hypervisors/types.ts";
import type { Kind } from "../../provider/agent/protocol.ts";

interface FakeGuest {
  state: GuestState;
  basePath: string;
  settings: string;
  /** What the guest has in its stateFiles. */
  contents: string;
}

/** A hypervisor that keeps its guests in memory, as a real one keeps them across restarts of the agent. */
export class FakeDriver implements Driver {
  readonly kind: Kind;
  readonly guests = new Map<string, FakeGuest>();
  readonly volumes = new Map<string, number>();
  /** Names of the methods called, with the guest's state after them. */
  readonly calls: string[] = [];
  console = "booting\nserving\n";
  /** Set to make the named method fail once. */
  failNext: string | undefined;
  silent = false;

  constructor(kind: Kind = "kvm") {
    this.kind = kind;
  }

  describe(): ReturnType<Driver["describe"]> {
    const kvm = this.kind === "kvm";
    return this.#answer(
      "describe",
      () => ({ version: "1.0", accelerator: kvm ? "tcg" : "none", machineTypes: kvm ? ["pc-q35-6.2"] : [] }),
      true,
    );
  }

  observe(guest: Guest): Promise<GuestState | undefined> {
    return this.#answer("observe", () => this.guests.get(guest.name)?.state, true);
  }

  ensure(guest: Guest): Promise<{ restartNeeded: boolean }> {
    return this.#answer("ensure", () => {
      const settings = this.settingsOf(guest);
      const existing = this.guests.get(guest.name);
      if (existing === undefined) this.guests.set(guest.name, { state: "stopped", basePath: guest.basePath, settings, contents: "new" });
      else existing.settings = settings;
      return { restartNeeded: existing?.state === "running" && settings !== this.launched.get(guest.name) };
    });
  }

  start(guest: Guest): Promise<void> {
    return this.#answer("start", () => {
      this.launched.set(guest.name, this.#mustHave(guest).settings);
      this.#mustHave(guest).state = "running";
    });
  }

  stop(guest: Guest): Promise<void> {
    return this.#answer("stop", () => void (this.#mustHave(guest).state = "stopped"));
  }

  suspend(guest: Guest): Promise<void> {
    return this.#answer("suspend", () => void (this.#mustHave(guest).state = "suspended"));
  }

  remove(guest: Guest): Promise<void> {
    return this.#answer("remove", () => void this.guests.delete(guest.name));
  }

  snapshot(): Promise<void> {
    return this.#answer("snapshot", () => undefined);
  }

  restore(): Promise<void> {
    return this.#answer("restore", () => undefined);
  }

  exec(guest: Guest, command: string[]): Promise<{ stdout: string; stderr: string; exitCode: number }> {
    return this.#answer("exec", () => ({ stdout: `${guest.name}: ${command.join(" ")}`, stderr: "", exitCode: 0 }));
  }

  log(_guest: Guest, lines: number): Promise<string> {
    return this.#answer("log", () => `${this.console.trim().split("\n").slice(-lines).join("\n")}\n`, true);
  }

  exportParts(_guest: Guest): Promise<Part[]> {
    return this.#answer("exportParts", () => []);
  }

  importParts(_guest: Guest, _directory: string): Promise<void> {
    return this.#answer("importParts", () => undefined);
  }

  exportState(guest: Guest): Promise<Readable> {
    return this.#answer("exportState", () => {
      this.#mustHave(guest).state = "stopped";
      return Readable.from([Buffer.from(this.#mustHave(guest).contents)]);
    });
  }

  async importState(guest: Guest, tar: Readable): Promise<void> {
    const chunks: Buffer[] = [];
    for await (const chunk of tar as AsyncIterable<Buffer>) chunks.push(chunk);
    await this.#answer("importState", () => void (this.#mustHave(guest).contents = Buffer.concat(chunks).toString("utf8")));
  }

  createVolume(hostPath: string, sizeMib: number): Promise<void> {
    return this.#answer("createVolume", () => void this.volumes.set(hostPath, sizeMib));
  }

  readVolume(): Promise<Readable> {
    return this.#answer("readVolume", () => Readable.from([]));
  }

  writeVolume(): Promise<void> {
    return this.#answer("writeVolume", () => undefined);
  }

  uninstall(_progress: Progress): Promise<void> {
    return this.#answer("uninstall", () => undefined);
  }

  protected readonly launched = new Map<string, string>();

  protected settingsOf({ spec, volumes }: Guest): string {
    return JSON.stringify([spec.resources, spec.files, spec.environment, volumes]);
  }

  #mustHave(guest: Guest): FakeGuest {
    const found = this.guests.get(guest.name);
    if (found === undefined) throw new CloudletError("NOT_FOUND", `there is no guest ${guest.name}`);
    return found;
  }

  /** Rejects where the named method should fail now. */
  protected async refuse(name: string): Promise<void> {
    await Promise.resolve();
    if (this.silent) throw new CloudletError("UNREACHABLE", "the hypervisor is silent");
    if (this.failNext === name) {
      this.failNext = undefined;
      throw new CloudletError("FAILED", `${name} failed`);
    }
  }

  async #answer<T>(name: string, work: () => T, quiet = false): Promise<T> {
    await this.refuse(name);
    if (!quiet) this.calls.push(name);
    return work();
  }
}
