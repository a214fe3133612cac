import { readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs";
import { basename, join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { expect } from "vitest";
import { jobEventSchema } from "../../provider/agent/jobProtocol.ts";
import { paths } from "../../provider/agent/protocol.ts";
import type { Outcome } from "../engine.ts";
import type { Declaration, GatewayName, Gateways, Kind } from "../gateways.ts";

const stepMillis = 60_000;

export const otherOf = (gateway: GatewayName): GatewayName => (gateway === "gw1" ? "gw2" : "gw1");

/** Two commissioned gateways, one cloudlet that is made, moved and removed, and whatever breaks meanwhile. */
export class FaultBench {
  readonly gateways: Gateways;
  readonly #kind: Kind;
  /** What the counter said last; it never goes back. */
  #count = 0;
  at: GatewayName | undefined;

  constructor(gateways: Gateways, kind: Kind) {
    this.gateways = gateways;
    this.#kind = kind;
  }

  declaration(at: GatewayName | undefined, change: Partial<Declaration> = {}): Declaration {
    // a host that is cut off should not cost the tests more than it must
    const gateway = { kind: this.#kind, connection: { perDialTimeout: 4, dialErrorLimit: 1 } };
    return { gateways: { gw1: gateway, gw2: gateway }, at, ...change };
  }

  /** Brings the cloudlet to a gateway, or away from all. */
  async up(at: GatewayName | undefined, change: Partial<Declaration> = {}): Promise<Outcome> {
    const outcome = await this.gateways.up(this.declaration(at, change));
    if (outcome.ok) this.#note(at);
    return outcome;
  }

  async mustUp(at: GatewayName | undefined, change: Partial<Declaration> = {}): Promise<Outcome> {
    const outcome = await this.up(at, change);
    expect(outcome.ok, outcome.text).toBe(true);
    return outcome;
  }

  /** One copy runs, where it should, and nothing that was counted is lost. */
  async expectWhole(): Promise<void> {
    const { gateways, at } = this;
    const running = await Promise.all([gateways.running("gw1"), gateways.running("gw2")]);
    expect(running).toEqual([at === "gw1" ? 1 : 0, at === "gw2" ? 1 : 0]);
    if (at === undefined) return;
    const passedOn = await gateways.peek(otherOf(at));
    if (passedOn !== undefined) expect(passedOn).toBe(await gateways.peek(at));
    await this.visit(at);
  }

  async visit(at: GatewayName): Promise<void> {
    const count = await this.gateways.visit(at);
    expect(count).toBe(this.#count + 1);
    this.#count += 1;
  }

  /** At no moment two; asked while something else goes on. */
  async expectNoTwo(): Promise<void> {
    const running = await Promise.all([this.gateways.running("gw1"), this.gateways.running("gw2")]);
    expect(running[0] + running[1]).toBeLessThan(2);
  }

  /** The agent of a gateway breaks at this step once: what starts it again does not know of it. */
  async arm(gateway: GatewayName, fault: { crashAt: string } | { pauseAt: string }): Promise<void> {
    const setting = "crashAt" in fault ? `CLOUDLET_CRASH_AT=${fault.crashAt}` : `CLOUDLET_PAUSE_AT=${fault.pauseAt}`;
    const host = this.gateways.lab.hosts[gateway];
    await host.run(`echo ${setting} >/etc/default/cloudlet-agent && /etc/init.d/cloudlet-agent restart`, { timeoutMillis: 60_000 });
    await this.#answers(gateway);
    await host.run("rm /etc/default/cloudlet-agent");
  }

  /** How often the agent of a gateway has been started. */
  async starts(gateway: GatewayName): Promise<number> {
    return Number(await this.gateways.lab.hosts[gateway].run(`grep -c 'listens on' ${paths.log}`));
  }

  /** Steps of a verb's jobs since then, in order, as their journals on the node have them. */
  steps(gateway: GatewayName, verb: string, since: Date): string[] {
    const directory = `/proc/${String(this.gateways.lab.hosts[gateway].pids[0])}/root${paths.root}/jobs`;
    const found: string[] = [];
    for (const name of readdirSync(directory).filter((file) => file.startsWith(`${verb}-`))) {
      for (const line of readFileSync(join(directory, name), "utf8").split("\n").filter(Boolean)) {
        // the last line may still be written
        const event = line.endsWith("}") ? jobEventSchema.safeParse(JSON.parse(line)).data : undefined;
        if (event?.type === "step" && new Date(event.at) >= since) found.push(event.name);
      }
    }
    return found;
  }

  /** Runs `pulumi up` and kills it, with all that belongs to it, when a job's step is durable on a gateway. */
  async upKilledAt(
    at: GatewayName | undefined,
    { gateway, verb, step }: { gateway: GatewayName; verb: string; step: string },
  ): Promise<void> {
    await this.arm(gateway, { pauseAt: step });
    const since = new Date();
    const ending = this.gateways.up(this.declaration(at));
    let ended = false;
    void ending.finally(() => (ended = true));
    const deadline = Date.now() + stepMillis;
    while (!this.steps(gateway, verb, since).includes(step)) {
      if (ended || Date.now() > deadline) throw new Error(`step ${step} of ${verb} did not come: ${(await ending).text}`);
      await sleep(20);
    }
    expect(killProgram()).toBeGreaterThan(1);
    expect((await ending).ok).toBe(false);
    this.unlock();
  }

  /** What `pulumi cancel` does after a program was killed. */
  unlock(): void {
    rmSync(join(this.gateways.stack.directory, "backend", ".pulumi", "locks"), { recursive: true, force: true });
  }

  #note(at: GatewayName | undefined): void {
    if (this.at === undefined || at === undefined) this.#count = 0;
    this.at = at;
  }

  async #answers(gateway: GatewayName): Promise<void> {
    const ask = `curl -s -m 2 --unix-socket ${paths.socket} http://agent/v1/info`;
    await this.gateways.eventually(async () => expect(await this.gateways.lab.hosts[gateway].run(ask)).toContain("digest"), 20_000);
  }
}

/** The engines that this process has started. */
export function engines(): number[] {
  return [...parentsOfAll()]
    .filter(([pid, parent]) => parent === process.pid && basename(link(`/proc/${String(pid)}/exe`)) === "pulumi")
    .map(([pid]) => pid);
}

/** Ends the engine and everything that it has started, by their ids. Returns how many there were. */
export function killProgram(): number {
  const parents = parentsOfAll();
  const below = (pid: number): number[] => [pid, ...[...parents].filter(([, parent]) => parent === pid).flatMap(([child]) => below(child))];
  const pids = engines().flatMap(below);
  for (const pid of pids) {
    try {
      process.kill(pid, "SIGKILL");
    } catch {
      // it has ended by itself
    }
  }
  return pids.length;
}

function parentsOfAll(): Map<number, number> {
  const parents = new Map<number, number>();
  for (const name of readdirSync("/proc").filter((it) => /^\d+$/.test(it))) {
    const stat = read(`/proc/${name}/stat`);
    if (stat !== undefined) parents.set(Number(name), Number(stat.slice(stat.lastIndexOf(")") + 2).split(" ")[1]));
  }
  return parents;
}

function read(file: string): string | undefined {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return undefined;
  }
}

function link(file: string): string {
  try {
    return readlinkSync(file);
  } catch {
    return "";
  }
}
