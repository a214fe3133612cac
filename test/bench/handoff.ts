import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { MoveReport } from "../../provider/agent/handoffProtocol.ts";
import type { OverlayStatus } from "../../provider/agent/protocol.ts";
import { fullCopyBoot, liveMigration, suspendCopyResume, type Ends } from "./handoffBaselines.ts";
import { chart, page, row, sizesLink, sizesMib } from "./handoffPage.ts";
import { HandoffResults, type Cell, type Measured } from "./handoffResults.ts";
import { cloudlet, countMegabytes, moving, owner, specOf } from "./movingGuest.ts";
import { PlainGuest, plainPort } from "./plainQemu.ts";
import { usualMillis, watchMove } from "./subscriberWatch.ts";
import { TwoGateways } from "./twoGateways.ts";
import { guestResources } from "./workload.ts";

const baselines = { live: liveMigration, suspend: suspendCopyResume, full: fullCopyBoot };
const wayOf = { live: "live migration", suspend: "suspend, copy, resume", full: "full copy, boot" } as const;
const names = ["handoff", "return", "preseeded", ...(Object.keys(baselines) as (keyof typeof baselines)[]), "sizes"] as const;

const help = `Measures how a running cloudlet moves from one gateway to the other, as a subscriber sees it, beside what one does without:
QEMU's own live migration, suspending and copying, copying the disk and booting. Real QEMU on lab hosts; needs root.

  make bench-handoff [ARGS="--links 10,25 --ways handoff,live"]

What is measured replaces what the report had of it; the rest stays.

  --links    Mbit/s, 0 = as fast as it goes (default: 5,10,15,25,100,0)
  --delays   milliseconds that are added to each round trip (default: 0,50)
  --ways     ${names.join(", ")} (default: all)
             return: back to where it was, after a handoff, which is measured as well
             preseeded: a handoff to where a copy of it was sent before
             sizes: handoffs of guests with ${sizesMib.join(", ")} MiB at ${sizesLink} Mbit/s without delay
  --out      directory of the report (default: docs/benchmarks)`;

const { values } = parseArgs({
  options: {
    links: { type: "string", default: "5,10,15,25,100,0" },
    delays: { type: "string", default: "0,50" },
    ways: { type: "string", default: names.join(",") },
    out: { type: "string", default: join(import.meta.dirname, "../../docs/benchmarks") },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}
const links = values.links.split(",").map(Number);
const delays = values.delays.split(",").map(Number);
const chosen = names.filter((name) => values.ways.split(",").includes(name));
/** Before each move: Linux gives back what it has freed a part every two seconds. */
const settleMillis = 10_000;
const mostMillis = 3_600_000;
const answerMillis = 300_000;
const pageBytes = 4096;

type Gateway = "gw1" | "gw2";
type Link = Pick<Cell, "mbit" | "delayMillis">;

/** Moves something over the link, and tells what it cost. The link is the one of the second gateway. */
async function measure(
  { bench }: TwoGateways,
  { link, from, to, port }: { link: Link; from: Gateway; to: Gateway; port: number },
  act: () => Promise<Measured["report"]>,
): Promise<Measured> {
  const { lab } = bench;
  await sleep(settleMillis);
  const straight = link.delayMillis === 0 ? undefined : await lab.delay("gw2", link.delayMillis / 2);
  await lab.shape("gw2", link.mbit === 0 ? {} : { mbit: link.mbit });
  try {
    const { hosts } = lab;
    const watch = await watchMove(hosts.subscriber, { from: hosts[from].address, to: hosts[to].address, port });
    await sleep(usualMillis);
    const [began, before] = [Date.now(), await lab.bytesReceived(to)];
    const acted = await act().then(
      (report) => ({ report }),
      (error: unknown) => ({ error }),
    );
    const [ended, bytes] = [Date.now(), (await lab.bytesReceived(to)) - before];
    // what failed will not answer there
    const watched = watch.stop("error" in acted ? 0 : answerMillis);
    if ("error" in acted) return await watched.then(() => Promise.reject(acted.error)).catch(() => Promise.reject(acted.error));
    const { firstThere, gapBegan, countsPerSecond, ...seen } = await watched;
    const gapAtSeconds = (gapBegan - began) / 1000;
    const totalSeconds = (Math.max(ended, firstThere) - began) / 1000;
    const rewrittenMegabytes = countsPerSecond * countMegabytes;
    return { totalSeconds, ...seen, gapAtSeconds, bytes, rewrittenMegabytes, ...(acted.report && { report: acted.report }) };
  } finally {
    await lab.shape("gw2", {});
    await straight?.();
  }
}

/** As a provider moves a cloudlet. */
async function move({ bench, agents }: TwoGateways, from: Gateway, to: Gateway): Promise<MoveReport> {
  const here = await agents[from].instance(cloudlet);
  if (here === undefined) throw new Error(`${from} has no cloudlet`);
  const epoch = here.ownership.epoch + 1;
  const prepared = await agents[to].run("move.prepare", { spec: here.spec, epoch, from });
  const addresses = [bench.lab.hosts[to].address, ...prepared.addresses];
  const args = { id: cloudlet, epoch, self: from, target: { node: to, ...prepared, addresses }, route: "direct" as const };
  return agents[from].run("move.run", args, { timeoutMillis: mostMillis });
}

async function handoff(gateways: TwoGateways, link: Link, [from, to]: readonly [Gateway, Gateway]): Promise<Measured> {
  return measure(gateways, { link, from, to, port: 8080 }, async () => {
    const { mode, downtimeMillis, predicted, rounds = [] } = await move(gateways, from, to);
    if (mode !== "live") throw new Error(`it moved ${mode}`);
    const memoryMegabytes = rounds.reduce((sum, { pages }) => sum + (pages * pageBytes) / 1e6, 0);
    return {
      pauseSeconds: downtimeMillis / 1000,
      predictedPauseSeconds: (predicted?.downtimeMillis ?? 0) / 1000,
      rounds: rounds.length,
      memoryMegabytes,
      diskMegabytes: rounds.reduce((sum, { rawBytes }) => sum + rawBytes / 1e6, 0) - memoryMegabytes,
    };
  });
}

async function* handoffs(gateways: TwoGateways, memory: OverlayStatus, place: Link): AsyncGenerator<Cell> {
  const cell = { ...place, memoryMib: memory.resources.memoryMib };
  const usual = cell.memoryMib === guestResources.memoryMib;
  if (!usual || chosen.includes("handoff") || chosen.includes("return"))
    yield* withGuest(gateways, memory, async function* () {
      const outcome = await orFailed(handoff(gateways, place, ["gw1", "gw2"]));
      yield { way: "handoff", ...cell, outcome };
      if (!chosen.includes("return") || !usual || "failed" in outcome) return;
      yield { way: "return", ...cell, outcome: await orFailed(handoff(gateways, place, ["gw2", "gw1"])) };
    });
  if (usual && chosen.includes("preseeded"))
    yield* withGuest(gateways, memory, async function* () {
      await sendCopy(gateways);
      yield { way: "preseeded", ...cell, outcome: await orFailed(handoff(gateways, place, ["gw1", "gw2"])) };
    });
}

/** What a provider brings to a node of `handoff.preseed`; base and memory of the base are there anyway. */
async function sendCopy({ agents, bench }: TwoGateways): Promise<void> {
  const { digest } = await agents.gw1.run("instance.copy", { id: cloudlet }, { timeoutMillis: mostMillis });
  if (digest === undefined) throw new Error("there is no copy of it");
  const offer = await agents.gw1.run("blobs.offer", { digests: [digest], seconds: 3_600 });
  const offers = [{ node: "gw1", ...offer, addresses: [bench.lab.hosts.gw1.address] }];
  await agents.gw2.run("preseed.copy", { id: cloudlet, owner, digest, offers }, { timeoutMillis: mostMillis });
}

async function* withGuest(gateways: TwoGateways, memory: OverlayStatus, moves: () => AsyncGenerator<Cell>): AsyncGenerator<Cell> {
  const { agents, base } = gateways;
  try {
    await agents.gw1.run("instance.apply", { spec: specOf(base, memory), fresh: true, offers: [] }, { timeoutMillis: answerMillis });
    const made = await agents.gw1.exec(cloudlet, { command: ["sh", "-c", moving], timeoutSeconds: 600 }, { timeoutMillis: 600_000 });
    if (made.exitCode !== 0) throw new Error(`the guest could not be made: ${made.stderr}`);
    yield* moves();
  } finally {
    // after a move that failed, the target may have no more than a reservation
    await agents.gw2.run("move.cancel", { id: cloudlet }).catch(() => undefined);
    for (const agent of Object.values(agents)) await agent.run("instance.remove", { id: cloudlet, owner }).catch(() => undefined);
  }
}

async function baseline(gateways: TwoGateways, link: Link, name: keyof typeof baselines): Promise<Cell> {
  const { gw1, gw2 } = gateways.bench.lab.hosts;
  const ends: Ends = { from: new PlainGuest(gw1), to: new PlainGuest(gw2) };
  const image = `/var/lib/cloudlet/store/${gateways.base.slice(0, 2)}/${gateways.base}`;
  try {
    await ends.from.prepare(image);
    await ends.to.prepareEmpty();
    await ends.from.start();
    await ends.from.answers(answerMillis);
    const outcome = await orFailed(
      measure(gateways, { link, from: "gw1", to: "gw2", port: plainPort }, () => baselines[name](ends).then(() => undefined)),
    );
    return { way: wayOf[name], ...link, memoryMib: guestResources.memoryMib, outcome };
  } finally {
    await ends.from.remove();
    await ends.to.remove();
  }
}

async function orFailed(measured: Promise<Measured>): Promise<Cell["outcome"]> {
  return measured.catch((error: unknown) => ({ failed: error instanceof Error ? error.message : String(error) }));
}

async function* cells(gateways: TwoGateways): AsyncGenerator<Cell> {
  const own = (["handoff", "return", "preseeded"] as const).some((name) => chosen.includes(name));
  const memory = own ? await gateways.baseMemory() : undefined;
  for (const delayMillis of delays)
    for (const mbit of links) {
      if (memory !== undefined) yield* handoffs(gateways, memory, { mbit, delayMillis });
      for (const name of Object.keys(baselines) as (keyof typeof baselines)[])
        if (chosen.includes(name)) yield await baseline(gateways, { mbit, delayMillis }, name);
    }
  if (!chosen.includes("sizes")) return;
  for (const size of sizesMib) yield* handoffs(gateways, await gateways.baseMemory(size), { mbit: sizesLink, delayMillis: 0 });
}

async function main(): Promise<void> {
  const results = await HandoffResults.open(values.out);
  const gateways = await TwoGateways.open("handoff", owner);
  try {
    for await (const cell of cells(gateways)) {
      console.log(row(cell));
      await results.put(cell);
      await writeFile(join(values.out, "handoff.svg"), chart(results.cells));
      await writeFile(join(values.out, "handoff.md"), page(results.cells));
    }
  } finally {
    await gateways.close();
  }
}

await main();
