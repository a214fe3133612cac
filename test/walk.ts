import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { transform } from "esbuild";
import { z } from "zod";
import { moveReportSchema, type MoveReport } from "../provider/agent/handoffProtocol.ts";
import { buildImages } from "../tools/images/images.ts";
import { exampleProgram, openStack, type Outcome, type TestStack } from "./engine.ts";
import { createLab, type Lab } from "./lab/lab.ts";

export const row = ["gw1", "gw2", "gw3"] as const;
export type GatewayOnTheWay = (typeof row)[number];

const example = resolve(import.meta.dirname, "../examples/following-subscriber");

const lineSchema = z.object({
  session: z.string(),
  steps: z.int(),
  gateway: z.string().optional(),
  silenceMillis: z.int().optional(),
  longestSilenceMillis: z.int().optional(),
});
/** What the subscriber tells: once at each gateway, and at the end. */
export type SubscriberLine = z.infer<typeof lineSchema>;

/** The example's program on three gateways, and its subscriber on a host of its own. */
export class Walk {
  readonly lab: Lab<GatewayOnTheWay | "subscriber">;
  readonly stack: TestStack;
  #subscriber: Promise<SubscriberLine[]> | undefined;

  constructor(lab: Walk["lab"], stack: TestStack) {
    this.lab = lab;
    this.stack = stack;
  }

  /** The program's one change. */
  async subscriberIsAt(gateway: GatewayOnTheWay): Promise<void> {
    await this.stack.setConfig("subscriberAt", gateway);
  }

  /** Starts the subscriber; returns when its session has begun. */
  async setOut(): Promise<void> {
    const { subscriber } = this.lab.hosts;
    const { code } = await transform(await readFile(join(example, "subscriber.ts"), "utf8"), { loader: "ts" });
    await subscriber.run("cat >/tmp/subscriber.mjs; rm -f /tmp/subscriber.pid; : >/tmp/subscriber.out", { stdin: code });
    const addresses = row.map((gateway) => `http://${this.lab.hosts[gateway].address}:8080`);
    const command = `echo $$ >/tmp/subscriber.pid; exec node /tmp/subscriber.mjs ${addresses.join(" ")} >/tmp/subscriber.out`;
    this.#subscriber = subscriber.run(command, { timeoutMillis: 1_800_000 }).then(() => this.#told());
    this.#subscriber.catch(() => undefined);
    await subscriber.run("for i in $(seq 300); do [ -s /tmp/subscriber.out ] && exit; sleep 0.1; done; exit 1");
  }

  /** Ends the walk; fails if the session was ever lost or went back. */
  async arrive(): Promise<SubscriberLine[]> {
    if (this.#subscriber === undefined) throw new Error("the subscriber has not set out");
    await this.lab.hosts.subscriber.exec("kill -INT $(cat /tmp/subscriber.pid)");
    return this.#subscriber;
  }

  async close(): Promise<void> {
    await this.stack.close();
    await this.lab.close();
  }

  async #told(): Promise<SubscriberLine[]> {
    const text = await this.lab.hosts.subscriber.run("cat /tmp/subscriber.out");
    return text
      .split("\n")
      .filter(Boolean)
      .map((line) => lineSchema.parse(JSON.parse(line)));
  }
}

export async function openWalk(name: string): Promise<Walk> {
  const { vm } = await buildImages();
  const lab = await createLab({ name, hosts: [...row, "subscriber" as const].map((host) => ({ name: host })) });
  try {
    const stack = await openStack({ project: "following-subscriber", program: exampleProgram(join(example, "index.ts")) });
    const connections = row.map((gateway) => {
      const { host, hostKey } = lab.hosts[gateway].connection;
      return [gateway, { host, hostKey }] as const;
    });
    await stack.setConfig("gateways", JSON.stringify(Object.fromEntries(connections)));
    await stack.setConfig("privateKey", lab.hosts.gw1.connection.privateKey, true);
    await stack.setConfig("base", vm);
    return new Walk(lab, stack);
  } catch (error) {
    await lab.close();
    throw error;
  }
}

export function lastMoveOf({ outputs }: Outcome): MoveReport {
  return moveReportSchema.parse(outputs["lastMove"]);
}
