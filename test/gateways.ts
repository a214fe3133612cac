import { readdir, readFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";
import type { PulumiFn } from "@pulumi/pulumi/automation/index.js";
import type { Handoff } from "../provider/agent/handoffProtocol.ts";
import type * as Hooks from "../provider/doors/dynamic/hooks.ts";
import type * as Sdk from "../sdk/plugin/index.ts";
import type { CloudletArgs, ConnectionArgs, HypervisorArgs } from "../sdk/plugin/index.ts";
import { buildImages } from "../tools/images/images.ts";
import { openStack, type Outcome, type TestStack } from "./engine.ts";
import { createLab, type Lab } from "./lab/lab.ts";

export type Kind = "kvm" | "lxd";
export type Door = "dynamic" | "plugin";
export type GatewayName = "gw1" | "gw2";

/** What a test program declares; everything else follows. */
export interface Declaration {
  /** The gateways that are declared, with their kind of hypervisor. */
  gateways: Partial<
    Record<
      GatewayName,
      { kind: Kind; connection?: Partial<ConnectionArgs>; onUnreachable?: "fail" | "forget"; lxd?: HypervisorArgs["lxd"] }
    >
  >;
  /** Where the cloudlet is; no cloudlet without it. */
  at?: GatewayName | undefined;
  cloudlet?: Partial<CloudletArgs> & { name?: string };
  /** Of the cloudlet: what only the plugin keeps to. */
  timeouts?: { create?: string; update?: string };
  application?: string;
  /** A volume of this many MiB, attached at /data unless `detached`. */
  volume?: { sizeMib: number; detached?: boolean; retainOnDelete?: boolean } | undefined;
}

/** The classes are the same behind both doors. */
const packages: Record<Door, string> = { dynamic: "pulumi-cloudlet/dynamic", plugin: "pulumi-cloudlet" };

/** Two gateways and a subscriber, real hosts each, with a stack whose program is a declaration. */
export class Gateways {
  readonly door: Door;
  readonly lab: Lab<GatewayName | "subscriber">;
  readonly images: { vm: string; container: string };
  readonly stack: TestStack;
  readonly #sdk: typeof Sdk;

  constructor(parts: { lab: Gateways["lab"]; images: Gateways["images"]; stack: TestStack; door: Door }) {
    this.door = parts.door;
    this.lab = parts.lab;
    this.images = parts.images;
    this.stack = parts.stack;
    this.#sdk = createRequire(join(parts.stack.directory, "x"))(packages[parts.door]) as typeof Sdk;
  }

  /** The same stack, with programs of the other door. */
  through(door: Door): Gateways {
    return new Gateways({ lab: this.lab, images: this.images, stack: this.stack, door });
  }

  get sdk(): typeof Sdk {
    return this.#sdk;
  }

  /** The program that makes a declaration come true. */
  program(declaration: Declaration): PulumiFn {
    const { EdgeCluster, Node, Hypervisor, Cloudlet, Volume } = this.#sdk;
    return async () => {
      const hypervisors = new Map<string, InstanceType<typeof Hypervisor>>();
      for (const [name, gateway] of Object.entries(declaration.gateways)) {
        const { host, privateKey, hostKey, user } = this.lab.hosts[name as GatewayName].connection;
        const node = new Node(name, {
          connection: { host, privateKey, hostKey, user, ...gateway.connection },
          ...(gateway.onUnreachable && { onUnreachable: gateway.onUnreachable }),
        });
        hypervisors.set(
          name,
          new Hypervisor(`${gateway.kind}-${name}`, {
            node,
            kind: gateway.kind,
            ...(gateway.lxd && { lxd: gateway.lxd }),
            ...(gateway.onUnreachable && { onUnreachable: gateway.onUnreachable }),
          }),
        );
      }
      const cluster = new EdgeCluster("visits", { application: declaration.application ?? "visit-counter" });
      const hypervisor = declaration.at && hypervisors.get(declaration.at);
      if (!hypervisor || !declaration.at) return {};
      const kind = declaration.gateways[declaration.at]?.kind;
      const { volume: wanted } = declaration;
      const volume =
        wanted && new Volume("data", { hypervisor, sizeMib: wanted.sizeMib, ...(wanted.retainOnDelete && { retainOnDelete: true }) });
      const inputs = {
        cluster,
        hypervisor,
        base: { file: kind === "kvm" ? this.images.vm : this.images.container },
        resources: { memoryMib: 192 },
        ports: [{ port: 8080 }],
        stateFiles: ["/var/lib/counter"],
        ready: { http: { port: 8080, path: "/peek" }, timeoutSeconds: 60 },
        ...(volume && !wanted.detached && { volumes: [{ volume, path: "/data" }] }),
        ...declaration.cloudlet,
      };
      const cloudlet = new Cloudlet("counter", inputs, declaration.timeouts && { customTimeouts: declaration.timeouts });
      return {
        endpoint: cloudlet.endpoint,
        lastMove: cloudlet.lastMove,
        accelerator: cloudlet.accelerator,
        imageDigest: cloudlet.imageDigest,
        status: cloudlet.status,
      };
    };
  }

  /** `interrupt` does what Ctrl-C does. */
  async up(declaration: Declaration, interrupt?: AbortSignal): Promise<Outcome> {
    return changes(await this.stack.up(this.program(declaration), interrupt));
  }

  async preview(declaration: Declaration): Promise<Outcome> {
    return changes(await this.stack.preview(this.program(declaration)));
  }

  /** The subscriber asks the application at a gateway; undefined = no answer. */
  async visit(gateway: GatewayName, path = "/", port = 8080): Promise<number | undefined> {
    const { stdout } = await this.lab.hosts.subscriber.exec([
      "curl",
      "-s",
      "-m",
      "2",
      `http://${this.lab.hosts[gateway].address}:${port}${path}`,
    ]);
    const count = /"counter": *(\d+)/.exec(stdout)?.[1];
    return count === undefined ? undefined : Number(count);
  }

  /** The subscriber opens a connection to a gateway and asks half a question. Asks the other half when told to; what came of it first, and after how long. */
  async halfAsked(gateway: GatewayName): Promise<{ ask(): Promise<{ outcome: string; afterMillis: number }> }> {
    const { subscriber } = this.lab.hosts;
    const program = `
      const fs = require("fs"); let asked, told; const tell = (outcome) => { if (told) return; told = true; console.log(JSON.stringify({ outcome, afterMillis: asked ? Date.now() - asked : 0 })); process.exit(); };
      const socket = require("net").connect(8080, "${this.lab.hosts[gateway].address}", () => socket.write("GET /peek HTTP/1.0\\r\\n"));
      socket.on("error", (error) => tell(error.code)).on("data", () => tell("answered")).on("end", () => tell("closed"));
      setInterval(() => { if (!asked && fs.existsSync("/tmp/ask")) { asked = Date.now(); socket.write("\\r\\n"); } }, 20);`;
    await subscriber.run("rm -f /tmp/ask /tmp/told; cat >/tmp/half.js; setsid node /tmp/half.js >/tmp/told 2>&1 </dev/null &", {
      stdin: program,
    });
    return {
      ask: async () => {
        const told = await subscriber.run(
          "touch /tmp/ask; for i in $(seq 300); do [ -s /tmp/told ] && break; sleep 0.1; done; cat /tmp/told",
        );
        return JSON.parse(told) as { outcome: string; afterMillis: number };
      },
    };
  }

  peek(gateway: GatewayName, port = 8080): Promise<number | undefined> {
    return this.visit(gateway, "/peek", port);
  }

  /** Sends the agent of a gateway a signal, by the pid in its lock file. */
  async signalAgent(gateway: GatewayName, signal: "KILL" | "TERM" | "STOP" | "CONT"): Promise<void> {
    await this.lab.hosts[gateway].run(`kill -${signal} $(cut -d ' ' -f 1 /var/lib/cloudlet/agent.lock)`);
  }

  /** Ids of the cloudlets whose guest really runs on a gateway, whatever any record says. */
  async running(gateway: GatewayName): Promise<number> {
    const host = this.lab.hosts[gateway];
    const qemus = await host.run("for p in /proc/[0-9]*; do readlink $p/exe 2>/dev/null | grep -q qemu-system && echo $p; done; true");
    const containers = await host.run(
      "curl -s --unix-socket /var/lib/lxd/unix.socket 'http://lxd/1.0/instances?recursion=1' 2>/dev/null || true",
    );
    return qemus.split("\n").filter(Boolean).length + (containers.match(/"status": *"Running"/g) ?? []).length;
  }

  /** Runs a command in the cloudlet through the package's own function. */
  async exec(command: string[], gateway: GatewayName = "gw1"): Promise<string> {
    const { functions } = createRequire(join(this.stack.directory, "x"))("pulumi-cloudlet/hooks") as typeof Hooks;
    const { stdout, stderr, exitCode } = await functions.exec(this.lab.hosts[gateway].connection, "visits/counter", {
      command,
      timeoutSeconds: 30,
    });
    if (exitCode !== 0) throw new Error(`${command.join(" ")} ended with ${exitCode}: ${stderr}`);
    return stdout;
  }

  /** What a gateway knows of the cloudlet's moves, through the package's own function. */
  async handoffs(gateway: GatewayName): Promise<Handoff[]> {
    const { functions } = createRequire(join(this.stack.directory, "x"))("pulumi-cloudlet/hooks") as typeof Hooks;
    return functions.handoffs(this.lab.hosts[gateway].connection, "visits/counter");
  }

  /** Ends every guest behind the agent's back. */
  async stopGuests(gateway: GatewayName): Promise<void> {
    await this.lab.hosts[gateway].run(
      `for p in /proc/[0-9]*; do readlink $p/exe 2>/dev/null | grep -q qemu-system && kill -KILL \${p#/proc/}; done
       for c in $(LXD_DIR=/var/lib/lxd lxc list -f csv -c n 2>/dev/null); do LXD_DIR=/var/lib/lxd lxc stop -f "$c"; done; true`,
      { timeoutMillis: 60_000 },
    );
  }

  /** Stops the agent as an administrator would. */
  async stopAgent(gateway: GatewayName): Promise<void> {
    await this.lab.hosts[gateway].run("/etc/init.d/cloudlet-agent stop", { timeoutMillis: 60_000 });
  }

  /** Everything that the backend has on disk, as one text. */
  async storedText(): Promise<string> {
    const entries = await readdir(join(this.stack.directory, "backend"), { recursive: true, withFileTypes: true });
    const files = entries.filter((entry) => entry.isFile());
    return (await Promise.all(files.map((entry) => readFile(join(entry.parentPath, entry.name), "latin1")))).join("\n");
  }

  async eventually(check: () => Promise<void>, timeoutMillis: number): Promise<void> {
    const end = Date.now() + timeoutMillis;
    for (;;) {
      try {
        return await check();
      } catch (error) {
        if (Date.now() > end) throw error;
        await new Promise((resume) => setTimeout(resume, 200));
      }
    }
  }

  async close(): Promise<void> {
    await this.stack.close();
    await this.lab.close();
  }
}

/** What stays the same is not a step. */
function changes(outcome: Outcome): Outcome {
  return { ...outcome, steps: outcome.steps.filter(({ op }) => op !== "same") };
}

/** `name` is the lab's, so that files may run one after the other without meeting each other's remains. */
export async function openGateways(
  name: string,
  { lxd = [], bare = [], door = "dynamic" }: { lxd?: GatewayName[]; bare?: GatewayName[]; door?: Door } = {},
): Promise<Gateways> {
  const images = await buildImages();
  const host = (gateway: GatewayName) => ({ name: gateway, lxd: lxd.includes(gateway), bare: bare.includes(gateway) });
  const lab = await createLab({ name, hosts: [host("gw1"), host("gw2"), { name: "subscriber" }] });
  try {
    const stack = await openStack({ program: () => Promise.resolve({}) });
    return new Gateways({ lab, images, stack, door });
  } catch (error) {
    await lab.close();
    throw error;
  }
}

/** Visits without pause from the subscriber, at both gateways, until told to stop. */
export function watchSubscriber(gateways: Gateways): {
  stop(): Promise<{
    longestGapMillis: number;
    answers: number;
    /** Visits without an answer: the application may have counted them all the same. */
    unanswered: number;
    last: number;
    wentBack: string[];
  }>;
} {
  let running = true;
  let lastAnswer = performance.now();
  const seen = { longestGapMillis: 0, answers: 0, unanswered: 0, last: 0, wentBack: [] as string[] };
  const watching = (async () => {
    while (running) {
      const counts = await Promise.all((["gw1", "gw2"] as const).map((gateway) => gateways.visit(gateway)));
      // both may lead to the same place, and who was asked first need not be who is answered first
      const answered = counts.flatMap((count, index) => (count === undefined ? [] : [{ count, index }]));
      seen.unanswered += counts.length - answered.length;
      for (const { count, index } of answered.sort((a, b) => a.count - b.count)) {
        seen.longestGapMillis = Math.max(seen.longestGapMillis, performance.now() - lastAnswer);
        lastAnswer = performance.now();
        seen.answers++;
        if (count <= seen.last) seen.wentBack.push(`gw${index + 1} answered ${count} after ${seen.last}`);
        seen.last = Math.max(seen.last, count);
      }
      await new Promise((resume) => setTimeout(resume, 30));
    }
  })();
  return {
    async stop() {
      running = false;
      await watching;
      return { ...seen, longestGapMillis: Math.round(seen.longestGapMillis) };
    },
  };
}
