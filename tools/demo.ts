import { resolve } from "node:path";
import { parseArgs, styleText } from "node:util";
import type { MoveReport } from "../provider/agent/handoffProtocol.ts";
import type { Provision } from "../provider/agent/protocol.ts";
import { exampleProgram, openStack } from "../test/engine.ts";
import { Gateways, watchSubscriber } from "../test/gateways.ts";
import { createLab, type Lab } from "../test/lab/lab.ts";
import { coldBootMillis } from "./coldBoot.ts";
import { buildImages } from "./images/images.ts";
import { expectOk, shownMove, step } from "./step.ts";

const help = `Shows the main job on this machine: two edge gateways, one application, a subscriber who moves.

  make demo [KIND=kvm|lxd]

It needs root, makes its own network namespaces, and leaves nothing behind.`;

const { values } = parseArgs({ options: { kind: { type: "string", default: "kvm" }, help: { type: "boolean", default: false } } });
if (values.help) {
  console.log(help);
  process.exit(0);
}
const kind = values.kind;
if (kind !== "kvm" && kind !== "lxd") {
  console.error(`--kind is "${kind}"; it must be kvm or lxd`);
  process.exit(2);
}

const program = resolve(import.meta.dirname, "../examples/two-gateways/index.ts");
type Hosts = "gw1" | "gw2" | "subscriber";

async function traces(lab: Lab<Hosts>, gateway: "gw1" | "gw2"): Promise<string> {
  return lab.hosts[gateway].run(
    "ls -d /var/lib/cloudlet/agent /etc/init.d/cloudlet-agent /run/cloudlet 2>/dev/null; nft list tables 2>/dev/null; ip -br link show type bridge; getent passwd cloudlet || true",
  );
}

const began = performance.now();
const images = await step("building the two small images from Debian packages (cached afterwards)", () => buildImages());
const lab = await step("starting two gateways and a subscriber, each a host of its own", () =>
  createLab({ name: "demo", hosts: [{ name: "gw1", lxd: kind === "lxd" }, { name: "gw2", lxd: kind === "lxd" }, { name: "subscriber" }] }),
);
process.once("SIGINT", () => void lab.close().finally(() => process.exit(130)));

try {
  const before = { gw1: await traces(lab, "gw1"), gw2: await traces(lab, "gw2") };
  const stack = await openStack({ project: "two-gateways", program: exampleProgram(program) });
  const gateways = new Gateways({ lab, images, stack, door: "dynamic" });
  try {
    const { privateKey } = lab.hosts.gw1.connection;
    const gateway = ({ host, hostKey }: { host: string; hostKey: string }) => ({ host, hostKey });
    await stack.setConfig("gateways", JSON.stringify({ gw1: gateway(lab.hosts.gw1.connection), gw2: gateway(lab.hosts.gw2.connection) }));
    await stack.setConfig("privateKey", privateKey, true);
    await stack.setConfig("kind", kind);
    await stack.setConfig("base", kind === "kvm" ? images.vm : images.container);
    await stack.setConfig("subscriberAt", "gw1");

    const title = "pulumi up: commission both gateways, place the base, build the overlay, start the application from it on gateway 1";
    const first = await step(title, () => expectOk(stack.up()));
    let count = 0;
    await step("the subscriber visits the application at gateway 1, ten times", async () => {
      for (let visits = 0; visits < 10; visits++) count = (await gateways.visit("gw1")) ?? count;
    });
    console.log(`  counter is ${count} (${String(first.outputs["accelerator"])})`);

    const cold = await step("for comparison: the same application boots from its base, on the same gateway", () =>
      coldBootMillis(lab.hosts.gw1.connection, { kind, resembles: "visits/counter" }),
    );
    const provision = first.outputs["provision"] as Provision;
    console.table({
      [`from its overlay (${provision.rung})`]: startFigures(provision.firstReplyMillis, provision.totalMillis),
      "booted from its base": startFigures(cold, cold),
    });
    console.log(`  ${provision.rung}: ${provision.reason}`);

    console.log(styleText("bold", "\n  The subscriber moves to gateway 2; the program's input changes: subscriberAt gw1 → gw2"));
    await stack.setConfig("subscriberAt", "gw2");
    const preview = await step("pulumi preview", () => expectOk(stack.preview()));
    console.log(styleText("cyan", shownDiff(preview.text)));
    console.log(shownMove(preview));

    const watcher = watchSubscriber(gateways);
    const moved = await step("pulumi up: move it", () => expectOk(stack.up()));
    const seen = await watcher.stop();
    const after = await gateways.visit("gw2");
    const gone = (await gateways.running("gw1")) === 0;
    const passedOn = (await gateways.visit("gw1")) === (after ?? 0) + 1;

    const report = moved.outputs["lastMove"] as MoveReport;
    await step("pulumi destroy", () => expectOk(stack.destroy()));
    const clean = (await traces(lab, "gw1")) === before.gw1 && (await traces(lab, "gw2")) === before.gw2;

    console.log();
    console.table({
      "ran at": { before: "gateway 1", after: "gateway 2" },
      counter: { before: count, after: after ?? "no answer" },
      "gateway 1": { before: "runs it", after: passedOn ? "passes clients on" : "NO ANSWER" },
    });
    console.table({
      mode: report.mode,
      ...(report.rounds && { "rounds, the last one while it was paused": report.rounds.length }),
      "bytes sent": report.bytesSent,
      "bytes the target had": report.bytesAvoided,
      "the whole move (ms)": report.totalMillis,
      "away, as measured by the gateways (ms)": report.downtimeMillis,
      "longest silence the subscriber saw (ms)": seen.longestGapMillis,
      "visits answered during the move": seen.answers,
      "the counter went back": seen.wentBack.length > 0 ? "YES" : "never",
      "gateways as before": clean ? "yes" : "NO",
    });
    const asPromised = report.mode === (kind === "kvm" ? "live" : "cold");
    if (!asPromised || after === undefined || after <= count || seen.wentBack.length > 0 || !gone || !passedOn || !clean)
      throw new Error("the demo did not show what it promises");
    console.log(`Done in ${((performance.now() - began) / 1000).toFixed(0)} s.`);
  } finally {
    await stack.close();
  }
} finally {
  await lab.close();
}

function startFigures(firstReplyMillis: number, totalMillis: number): Record<string, number> {
  return { "first reply (ms)": firstReplyMillis, "all on the gateway (ms)": totalMillis };
}

/** What a reviewer reads: the engine's own lines on what changes. */
function shownDiff(text: string): string {
  return text
    .split("\n")
    .filter((line) => /^\s+(~|\[id=|[+-] )/.test(line) && !/warning|\[diff:/.test(line))
    .join("\n");
}
