import { setTimeout as sleep } from "node:timers/promises";
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { connect, createServer, type AddressInfo, type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { applyInstance } from "../../../provider/agent/instanceApply.ts";
import type { JobContext } from "../../../provider/agent/jobs.ts";
import { MoveSource } from "../../../provider/agent/moves/source.ts";
import { MoveTarget } from "../../../provider/agent/moves/target.ts";
import type { MoveReport } from "../../../provider/agent/handoffProtocol.ts";
import type { InstanceRecord } from "../../../provider/agent/records.ts";
import { recover } from "../../../provider/agent/recover.ts";
import type { Services } from "../../../provider/agent/services.ts";
import type { Ahead, Guest, Part } from "../../../provider/hypervisors/types.ts";
import { FakeDriver } from "../../fakes/driver.ts";
import { FakeLive } from "../../fakes/liveDriver.ts";
import { freePort } from "../../freePort.ts";
import { digestText, spec, testAgent } from "../fixture.ts";

const id = "shop/counter";
const never = new Promise<never>(() => undefined);

/** What no driver may see: a second running copy, or one that lacks what a client was told is written. */
export class World {
  readonly drivers: MovingDriver[] = [];
  readonly violations: string[] = [];
  acknowledged = "new";

  running(): string[] {
    return this.drivers.filter((driver) => [...driver.guests.values()].some(({ state }) => state === "running")).map(({ node }) => node);
  }

  /** A client writes, wherever the application runs. */
  write(text: string): void {
    for (const driver of this.drivers) {
      for (const guest of driver.guests.values())
        if (guest.state === "running") this.acknowledged = guest.contents = `${guest.contents} ${text}`;
    }
  }
}

/** The fake hypervisor, with guests that consist of one disk. */
export class MovingDriver extends FakeDriver {
  readonly node: string;
  readonly live?: FakeLive;
  readonly ahead?: Ahead;
  readonly #world: World;

  constructor(node: string, world: World, live: boolean) {
    super();
    if (live) this.live = new FakeLive(this);
    else this.ahead = { diskBytes: () => Promise.resolve(1), exportParts: (guest) => this.exportParts(guest) };
    this.node = node;
    this.#world = world;
    world.drivers.push(this);
  }

  override async start(guest: Guest): Promise<void> {
    await super.start(guest);
    const running = this.#world.running();
    if (running.length > 1) this.#world.violations.push(`runs on ${running.join(" and ")}`);
    const contents = this.guests.get(guest.name)?.contents;
    if (contents !== this.#world.acknowledged)
      this.#world.violations.push(`${this.node} starts with "${contents ?? ""}" after "${this.#world.acknowledged}"`);
  }

  override async exportParts(guest: Guest): Promise<Part[]> {
    const path = join(guest.directory, "export", "disk.raw");
    await mkdir(join(guest.directory, "export"), { recursive: true });
    await writeFile(path, this.guests.get(guest.name)?.contents ?? "");
    return [{ name: "disk.raw", path, format: "raw" }];
  }

  override async importParts(guest: Guest, directory: string): Promise<void> {
    const contents = await readFile(join(directory, "disk.raw"), "utf8");
    this.guests.set(guest.name, { state: "stopped", basePath: guest.basePath, settings: "", contents });
  }
}

/** The way to a node's data port, which can be cut. */
export class Link {
  readonly #sockets = new Set<Socket>();
  readonly #server: Server;
  #cut = false;
  #limit = Infinity;
  /** Bytes that came from the node. */
  forwarded = 0;

  constructor(port: number) {
    this.#server = createServer((near) => {
      if (this.#cut) return void near.destroy();
      const far = connect(port, "127.0.0.1");
      for (const [socket, other] of [
        [near, far],
        [far, near],
      ] as const) {
        this.#sockets.add(socket);
        socket.on("error", () => other.destroy()).on("close", () => (this.#sockets.delete(socket), other.destroy()));
      }
      near.pipe(far).pipe(near);
      far.on("data", (chunk: Buffer) => {
        this.forwarded += chunk.length;
        if (this.forwarded > this.#limit) this.cut();
      });
    });
  }

  async open(): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, "127.0.0.1", resolve));
    return (this.#server.address() as AddressInfo).port;
  }

  cut(): void {
    this.#cut = true;
    for (const socket of this.#sockets) socket.destroy();
  }

  /** Cuts itself when the node has sent this much. */
  cutAfter(bytes: number): void {
    this.#limit = bytes;
  }

  heal(): void {
    this.#cut = false;
  }

  close(): void {
    this.cut();
    this.#server.close();
  }
}

/** One agent's moves, with its state on disk, its guests in a fake hypervisor, and its death at a chosen step. */
export class RigNode {
  readonly name: string;
  readonly driver: MovingDriver;
  readonly steps: string[] = [];
  link!: Link;
  services!: Services;
  source!: MoveSource;
  target!: MoveTarget;
  /** What happens at a step, once. */
  fault: { step: string; strike(): void } | undefined;
  killed: Promise<void> = never;
  #root = "";
  #port = 0;
  #linkPort = 0;
  #dead = false;
  #kill: () => void = () => undefined;

  constructor(name: string, world: World, { live = false } = {}) {
    this.name = name;
    this.driver = new MovingDriver(name, world, live);
  }

  async boot(): Promise<void> {
    if (this.#root === "") {
      this.#root = await mkdtemp(join(tmpdir(), `cloudlet-move-${this.name}-`));
      this.#port = await freePort();
      this.link = new Link(this.#port);
      this.#linkPort = await this.link.open();
    }
    const life = { dead: false };
    this.#dead = false;
    this.killed = new Promise((resolve) => {
      this.#kill = () => {
        life.dead = true;
        this.#dead = true;
        this.link.cut();
        this.target.close();
        resolve();
      };
    });
    const { services } = await testAgent({ root: this.#root, driver: this.driver });
    this.services = mortal(services, life);
    this.source = new MoveSource(this.services, [50, 100, 200, 400]);
    this.target = new MoveTarget(this.services, { port: this.#port, onStep: (step) => this.#onStep(`arrival.${step}`) });
    this.link.heal();
    await recover(this.services, this.context());
    await this.target.resume(this.context());
  }

  /** Its death at the chosen step; what it should die in must not end before. */
  async death(during: Promise<unknown>): Promise<void> {
    const missed = during.then(() => {
      throw new Error(`${this.name} is alive after all that it should have died in`);
    });
    await Promise.race([this.killed, missed]);
  }

  /** Dies at this step, as by kill -9. */
  dieAt(step: string): void {
    this.fault = { step, strike: () => this.#kill() };
  }

  /** Dies now, unless it is dead already. */
  die(): void {
    this.#kill();
  }

  /** Returns its epoch. */
  async make(): Promise<number> {
    const base = digestText("base");
    await this.services.store.put(base, () => Readable.from([Buffer.from("base")]));
    const { ownership } = await applyInstance(
      this.services,
      { spec: spec(base, { id, ports: [{ port: 80, hostPort: 8080, protocol: "tcp" }] }), fresh: true },
      this.context(),
    );
    return ownership.epoch;
  }

  record(): Promise<InstanceRecord | undefined> {
    return this.services.records.read(id);
  }

  /** As an operator's `pulumi up` does it: prepare there, run here. */
  async moveTo(there: RigNode): Promise<MoveReport | undefined> {
    const [here, far] = [await this.record(), await there.record()];
    if (here === undefined) throw new Error(`${this.name} has no cloudlet`);
    const left = here.ownership.role === "released";
    if (left && here.leaving !== true && far?.ownership.role === "owner") return here.lastMove;
    const epoch = left ? here.ownership.epoch : here.ownership.epoch + 1;
    const prepared = await there.services.lock.run(`instance:${id}`, () =>
      there.target.prepare({ spec: here.spec, epoch, from: this.name }, there.context()),
    );
    const target = { node: there.name, ...prepared, addresses: ["127.0.0.1"], port: there.#linkPort };
    return this.services.lock.run(`instance:${id}`, () =>
      this.source.run({ id, epoch, self: this.name, target, route: "direct" }, this.context()),
    );
  }

  context(): JobContext {
    return { signal: AbortSignal.timeout(30_000), status: () => undefined, step: (name) => this.#onStep(name) };
  }

  /** Another program listens where this agent's data port should be. Returns what ends that. */
  async occupyPort(): Promise<() => Promise<void>> {
    const other = createServer((socket) => socket.destroy());
    await new Promise<void>((resolve) => other.listen(this.#port, resolve));
    return () => new Promise((resolve) => other.close(() => resolve()));
  }

  /** Files that moves have left. */
  async leftOvers(): Promise<string[]> {
    return readdir(join(this.#root, "moves")).catch(() => []);
  }

  async close(): Promise<void> {
    this.link.close();
    this.target.close();
    await rm(this.#root, { recursive: true, force: true });
  }

  #onStep(name: string): void {
    if (this.#dead) throw new Error(`${this.name} is dead`);
    this.steps.push(name);
    if (this.fault?.step !== name) return;
    const { strike } = this.fault;
    this.fault = undefined;
    strike();
    if (this.#dead) throw new Error(`${this.name} was killed at ${name}`);
  }
}

/** After death nothing that was called ever answers, and nothing that is called does anything. */
function mortal(services: Services, life: { dead: boolean }): Services {
  const wrap = <T extends object>(part: T): T =>
    new Proxy(part, {
      get(target, key) {
        const value: unknown = Reflect.get(target, key, target);
        if (typeof value !== "function") return value;
        return (...args: unknown[]) => {
          if (life.dead) return never;
          const result: unknown = value.apply(target, args);
          return result instanceof Promise ? result.then((it: unknown) => (life.dead ? never : it)) : result;
        };
      },
    });
  const { records, hypervisors, network, store, volumes, lock } = services;
  return {
    ...services,
    records: wrap(records),
    hypervisors: wrap(hypervisors),
    network: wrap(network),
    store: wrap(store),
    volumes: wrap(volumes),
    lock: wrap(lock),
  };
}

/** Tries a check until it holds, for eight seconds at most. */
export async function eventually(check: () => void | Promise<void>): Promise<void> {
  for (const end = Date.now() + 8_000; ; await sleep(20)) {
    try {
      return await check();
    } catch (error) {
      if (Date.now() > end) throw error;
    }
  }
}
