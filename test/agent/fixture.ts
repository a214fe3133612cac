import { createHash } from "node:crypto";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import type { JobContext } from "../../provider/agent/jobs.ts";
import type { InstanceSpec } from "../../provider/agent/protocol.ts";
import { createServices } from "../../provider/agent/services.ts";
import type { Services } from "../../provider/agent/services.ts";
import type { InstanceRecord } from "../../provider/agent/records.ts";
import { Hydrations } from "../../provider/agent/synthesis/hydrations.ts";
import { FakeDriver } from "../fakes/driver.ts";
import { FakeWorks } from "../fakes/works.ts";

export interface TestAgent {
  root: string;
  driver: FakeDriver;
  works: FakeWorks;
  services: Services;
  /** What was published last. */
  published: () => readonly InstanceRecord[];
  /** Puts text into the store and returns its digest. */
  store(text: string): Promise<string>;
  remove(): void;
}

/** The agent's services over a fake hypervisor in a directory of its own. The same driver may be given again: guests outlive an agent. */
export async function testAgent(
  options: { root?: string; driver?: FakeDriver; works?: FakeWorks; usedPorts?: number[] } = {},
): Promise<TestAgent> {
  const root = options.root ?? mkdtempSync(join(tmpdir(), "cloudlet-agent-test-"));
  const driver = options.driver ?? new FakeDriver();
  const works = options.works ?? new FakeWorks();
  let published: readonly InstanceRecord[] = [];
  const services = await createServices({
    root,
    run: () => Promise.reject(new Error("no program is run in these tests")),
    works,
    createHydrations: (all) => new Hydrations(all),
    createDriver: () => Promise.resolve(driver),
    usedPorts: () => Promise.resolve(new Set(options.usedPorts ?? [])),
  });
  services.network = {
    prepare: () => Promise.resolve(),
    publish: (records) => Promise.resolve(void (published = records)),
    teardown: () => Promise.resolve(),
  };
  if ((await services.hypervisors.current()) === undefined)
    await services.hypervisors.apply({ kind: driver.kind, owner: "p/s" }, context());
  return {
    root,
    driver,
    works,
    services,
    published: () => published,
    async store(text) {
      const digest = digestText(text);
      await services.store.put(digest, () => Readable.from([Buffer.from(text)]));
      return digest;
    },
    remove() {
      services.hydrations.close();
      rmSync(root, { recursive: true, force: true });
    },
  };
}

/** A job's context that keeps the steps; at `crashAt` it throws, as if the agent had been killed there. */
export function context(crashAt?: string): JobContext & { steps: string[] } {
  const steps: string[] = [];
  return {
    signal: AbortSignal.timeout(20_000),
    steps,
    status: () => undefined,
    step(name) {
      steps.push(name);
      if (name === crashAt) throw new Error(`killed at ${name}`);
    },
  };
}

export function digestText(text: string): string {
  return createHash("sha256").update(text).digest("hex");
}

export function spec(base: string, change: Partial<InstanceSpec> = {}): InstanceSpec {
  return {
    id: "shop/counter",
    owner: "p/s",
    kind: "kvm",
    state: "running",
    base: { digest: base },
    resources: { cores: 1, memoryMib: 128, diskMib: 64 },
    ports: [],
    files: [],
    environment: {},
    volumes: [],
    stateFiles: [],
    ...change,
  };
}
