import { existsSync, readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { parseStat } from "../../provider/agent/detached.ts";
import { guestName, paths } from "../../provider/agent/protocol.ts";
import type { InstanceSpec, InstanceStatus, OverlayStatus } from "../../provider/agent/protocol.ts";
import { recordSchema } from "../../provider/agent/records.ts";
import type { SynthesisRecord } from "../../provider/agent/records.ts";
import { describeError } from "../../provider/core/errors.ts";
import { layerFiles } from "../../provider/synthesis/layerFiles.ts";
import { openOverlayBench, owner } from "../agent/synthesis/bench.ts";
import type { OverlayBench } from "../agent/synthesis/bench.ts";

/** When something happens to a cloudlet whose overlay is coming. */
export const phases = {
  "before anything of its data has come": "index",
  "while it is resumed": "launched",
  "before the first reply": "ran",
  "after the first reply": "answered",
  "before it settles": "whole",
} as const;
export type Phase = keyof typeof phases;

export type Program = "qemu" | "hydrate" | "view";

const name = "a";
const id = `visits/${name}`;
const guest = `instances/${guestName(id)}`;
const phaseMillis = 90_000;
const attempts = 3;
// the share of the overlay that has come when only what nobody reads is missing
const needed = 0.72;
const link = { mbit: 40 };
// so slow that a busy machine comes to see each phase before all is there
const crawl = { mbit: 2 };
// a guest that comes to read only now what it needs would wait for most of the rest
const crawlMillis = 15_000;
// more than is read before the first reply, so that there is a time after it
const script = "mkdir -p /opt && dd if=/dev/urandom of=/opt/data bs=1M count=6 2>/dev/null && cat /opt/data >/dev/null";

export interface Start {
  hydrate?: InstanceSpec["hydrate"];
  signal?: AbortSignal;
}

/** An overlay on the first gateway, a cloudlet of it that starts on the second over a slow link, and what happens to it meanwhile. */
export class ArrivalBench {
  readonly bench: OverlayBench;
  readonly overlay: OverlayStatus;
  readonly #blobs: { digest: string; index: string; pack: string };
  /** Since when the link crawls. */
  #slowSince: number | undefined;
  #still = false;

  constructor(bench: OverlayBench, overlay: OverlayStatus, blobs: { index: string; pack: string }) {
    this.bench = bench;
    this.overlay = overlay;
    this.#blobs = { digest: overlay.digest, ...blobs };
  }

  get lab(): OverlayBench["gateways"]["lab"] {
    return this.bench.gateways.lab;
  }

  /** Starts the cloudlet, or goes on with it, as `pulumi up` does. */
  async start({ hydrate, signal }: Start = {}): Promise<InstanceStatus> {
    const spec = this.bench.spec(name, this.overlay.digest, {
      ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 },
      ...(hydrate && { hydrate }),
    });
    // as the operator's side gets them, through a connection that is not cut
    const offers = [await this.bench.offer("gw1", this.overlay.digest)];
    return this.bench.client("gw2").run("instance.apply", { spec, fresh: true, offers }, signal && { signal });
  }

  /** A start that is in this phase. One that went through it unseen, on a machine that had no time to look, is begun anew. */
  async startUntil(phase: Phase, how: Start = {}): Promise<{ end: Promise<string> }> {
    for (let attempt = 1; ; attempt++) {
      const end = endOf(this.start(how));
      const missed = await this.#until(phase, end);
      if (missed === undefined) return { end };
      console.log(`the phase "${phase}" was not seen: ${missed}`);
      if (missed !== "done" || attempt === attempts) throw new Error(`the phase "${phase}" was not seen: ${missed}`);
      await this.clear();
    }
  }

  async kill(victim: Program | "agent"): Promise<void> {
    if (victim === "agent") {
      this.#still = false;
      return this.bench.gateways.signalAgent("gw2", "KILL");
    }
    const pid = this.pid(victim);
    if (pid === undefined) throw new Error(`no process ${victim} is there`);
    await this.lab.hosts.gw2.run(`kill -KILL ${String(pid)}`);
  }

  /** The link is there, and as fast as it was. */
  async heal(): Promise<void> {
    await this.lab.heal("gw1");
    await this.#quicken();
    if (this.#still) await this.bench.gateways.signalAgent("gw2", "CONT");
    this.#still = false;
  }

  synthesis(): SynthesisRecord | undefined {
    const text = this.#read(`${guest}/record.json`);
    return text === undefined ? undefined : recordSchema.parse(JSON.parse(text)).synthesis;
  }

  async status(): Promise<InstanceStatus | undefined> {
    return this.bench.client("gw2").instance(id);
  }

  /** It answers, from what is on the gateway alone, and all that it has can be read. */
  async expectWhole(): Promise<InstanceStatus> {
    const status = await this.status();
    expect(status).toMatchObject({ status: "running", ready: true, provision: { verified: true } });
    expect(status?.hydration).toBeUndefined();
    expect(this.pid("hydrate")).toBeUndefined();
    await this.lab.cut("gw1");
    try {
      expect(await this.bench.ask("gw2", name)).toContain("counter");
      const read = await this.bench.client("gw2").exec(id, { command: ["sh", "-c", "cat /opt/data | wc -c"], timeoutSeconds: 60 });
      expect(read).toMatchObject({ exitCode: 0, stdout: expect.stringMatching(/^6291456/) });
    } finally {
      await this.lab.heal("gw1");
    }
    if (status === undefined) throw new Error("it is gone");
    return status;
  }

  async answers(): Promise<boolean> {
    return this.bench.ask("gw2", name).then(
      (text) => text.includes("counter"),
      () => false,
    );
  }

  /** Removes the cloudlet; nothing of it is left, and its overlay is remote again. */
  async clear(): Promise<void> {
    await this.heal();
    await this.bench.remove("gw2", name);
    await this.expectNothing("gw2");
    for (const digest of Object.values(this.#blobs)) await this.lab.hosts.gw2.run(`rm -f ${this.#inStore(digest)}*`);
  }

  async expectNothing(gateway: "gw1" | "gw2"): Promise<void> {
    expect(await this.bench.programs(gateway)).toEqual([]);
    // where it was built it is kept
    expect(this.bench.list(gateway, "layers")).toEqual(gateway === "gw1" ? [this.overlay.digest] : []);
    expect(this.bench.list(gateway, "builds")).toEqual([]);
    expect(await this.bench.client(gateway).instances()).toEqual([]);
    const leftovers = await this.lab.hosts[gateway].run("grep -c fuse /proc/mounts; ip -br link show type tun; true");
    expect(leftovers).toBe("0\n");
  }

  /** How the start ended if it did so before the phase was seen. */
  async #until(phase: Phase, end: Promise<string>): Promise<string | undefined> {
    let ended: string | undefined;
    void end.then((text) => (ended = text));
    let crawled = false;
    for (const deadline = Date.now() + phaseMillis; !this.#reached(phase); await sleep(5)) {
      if (ended !== undefined) return ended;
      if (Date.now() > deadline) return `nothing happened, with ${(this.#share() * 100).toFixed()} % here and ${await this.#told()}`;
      if (this.#still) continue;
      // what is read before the first reply is there by now
      if (!crawled && this.#share() > needed) {
        crawled = true;
        this.#slowSince = Date.now();
        await this.lab.shape("gw1", crawl);
      }
      if (Date.now() - (this.#slowSince ?? Infinity) > crawlMillis) await this.#quicken();
      if (phase === "before it settles" && this.#reached("after the first reply")) await this.#holdAgent();
    }
    return undefined;
  }

  /** All of the overlay comes, but nobody is there who would have the guest settle on it. */
  async #holdAgent(): Promise<void> {
    this.#still = true;
    await this.bench.gateways.signalAgent("gw2", "STOP");
    await this.#quicken();
  }

  async #quicken(): Promise<void> {
    if (this.#slowSince !== undefined) await this.lab.shape("gw1", link);
    this.#slowSince = undefined;
  }

  /** What its node says of it. */
  async #told(): Promise<string> {
    return JSON.stringify(await this.status().catch(describeError));
  }

  #reached(phase: Phase): boolean {
    const layer = layerFiles(`${paths.root}/layers/${this.overlay.digest}`);
    switch (phases[phase]) {
      case "index":
        return existsSync(this.#inside(this.#inStore(this.#blobs.index)));
      case "launched":
        return this.pid("qemu") !== undefined;
      case "ran":
        return this.#read(`${guest}/launch.json`)?.includes('"ran":true') === true;
      case "answered":
        return this.synthesis()?.firstReplyMillis !== undefined;
      case "whole":
        return existsSync(this.#inside(layer.manifest));
    }
  }

  #share(): number {
    const text = this.#read(`layers/${this.overlay.digest}/hydrate.status.json`);
    if (text === undefined) return 0;
    const { present, total } = JSON.parse(text) as { present: number; total: number };
    return present / total;
  }

  /** Of a process of the cloudlet, or of its overlay, that is there. */
  pid(program: Program): number | undefined {
    const directory = program === "hydrate" ? `layers/${this.overlay.digest}` : guest;
    const stat = parseStat(this.#read(`${directory}/${program}.pid`)?.split("\n")[0] ?? "");
    return stat !== undefined && existsSync(this.#inside(`/proc/${String(stat.pid)}/exe`)) ? stat.pid : undefined;
  }

  #inStore(digest: string): string {
    return `${paths.root}/store/${digest.slice(0, 2)}/${digest}`;
  }

  #read(path: string): string | undefined {
    try {
      return readFileSync(this.#inside(`${paths.root}/${path}`), "utf8");
    } catch {
      return undefined;
    }
  }

  #inside(path: string): string {
    return `/proc/${String(this.lab.hosts.gw2.pids[0])}/root${path}`;
  }
}

/** How something ended that may fail. */
export async function endOf(work: Promise<unknown>): Promise<string> {
  return work.then(
    () => "done",
    (error: unknown) => describeError(error),
  );
}

export async function openArrivalBench(labName: string): Promise<ArrivalBench> {
  const bench = await openOverlayBench(labName);
  try {
    for (const gateway of ["gw1", "gw2"] as const) await bench.putBase(gateway);
    const overlay = await bench.client("gw1").run("overlay.build", { name: "app", owner, makings: bench.makings(script) });
    const { index, pack } = await bench.manifest("gw1", overlay.digest);
    console.log(`overlay of ${(overlay.bytes / 1e6).toFixed(1)} MB, built in ${String(overlay.buildMillis)} ms`);
    await bench.gateways.lab.shape("gw1", link);
    return new ArrivalBench(bench, overlay, { index: index.digest, pack: pack.digest });
  } catch (error) {
    await bench.gateways.close();
    throw error;
  }
}
