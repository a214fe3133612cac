import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { parseArgs } from "node:util";
import type { Deployment, PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { build } from "esbuild";
import { openStack, type Outcome, type TestStack } from "../engine.ts";
import { isOurs, watchPeaks } from "../lab/peak.ts";
import { chart, page, row, type Results } from "./enginePage.ts";
import { clusters, mixed, recorded } from "./engineStacks.ts";

const repository = resolve(import.meta.dirname, "../..");

const help = `Measures what the plugin adds to what Pulumi's engine takes by itself: previews of unchanged resources, an update that makes
some, the start of the plugin's process, and its memory. Reaches no node and needs no root.

  make bench-engine [ARGS="--repeats 3"]

  --repeats  how often each operation is measured (default: 15)
  --out      directory of the report (default: docs/benchmarks)`;

const { values } = parseArgs({
  options: {
    repeats: { type: "string", default: "15" },
    out: { type: "string", default: join(repository, "docs/benchmarks") },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(help);
  process.exit(0);
}
const repeats = Number(values.repeats);

interface Task {
  what: string;
  program: PulumiFn;
  /** What is there each time before it begins; nothing without it. */
  state?: Deployment;
  perform(stack: TestStack): Promise<Outcome>;
  /** What the engine must have counted. */
  expected: Record<string, number>;
}

const ways = ["plugin", "floor"] as const;
type Way = (typeof ways)[number];
/** Folders, each with a `pulumi-resource-cloudlet`. */
type Plugins = Record<Way, string>;

/** What is started to see how long that takes: beside the plugins Node.js itself, which the machine's speed can be told by. */
const started = [...ways, "empty"] as const;
/** How often each is started between two operations, whose minutes may find the machine at different speeds. */
const startsAtOnce = 10;

/** A folder with an executable of the plugin's name, which runs a file as the plugin's own does. */
async function makeExecutable(directory: string, file: string): Promise<string> {
  await mkdir(directory, { recursive: true });
  const shim = `#!/bin/sh\nexec node "${file}" "$@"\n`;
  await writeFile(join(directory, "pulumi-resource-cloudlet"), shim, { mode: 0o755 });
  return directory;
}

/** The fake provider that does nothing, as the plugin is built and found. */
async function makeFloor(directory: string): Promise<string> {
  const outfile = join(directory, "nothing.js");
  const source = join(import.meta.dirname, "nothing.ts");
  await build({ entryPoints: [source], outfile, bundle: true, platform: "node", format: "cjs", target: "node22", logLevel: "warning" });
  return await makeExecutable(directory, outfile);
}

/** A program that says a port and does no more than wait for its end. */
async function makeEmpty(directory: string): Promise<string> {
  const file = join(directory, "empty.js");
  const folder = await makeExecutable(directory, file);
  await writeFile(file, "console.log(1);\nprocess.stdin.resume();\n");
  return folder;
}

/** Seconds of each run, in turns. */
async function inTurns<W extends string>(
  times: number,
  order: readonly W[],
  measure: (way: W) => Promise<number>,
): Promise<Map<W, number[]>> {
  const seconds = new Map(order.map((way) => [way, [] as number[]]));
  for (let time = 0; time < times; time++)
    for (const way of time % 2 === 0 ? order : order.toReversed()) seconds.get(way)?.push(await measure(way));
  return seconds;
}

async function measureTask(task: Task, plugins: Plugins): Promise<Results["operations"][number]> {
  const { program, perform, expected } = task;
  const stacks = {
    plugin: await openStack({ program, plugin: plugins.plugin, asUsers: true }),
    floor: await openStack({ program, plugin: plugins.floor, asUsers: true }),
  };
  try {
    const before = { plugin: task.state ?? (await stacks.plugin.exportState()), floor: task.state ?? (await stacks.floor.exportState()) };
    const timed = async (way: Way): Promise<number> => {
      await stacks[way].importState(before[way]);
      const began = performance.now();
      const outcome = await perform(stacks[way]);
      const seconds = (performance.now() - began) / 1000;
      if (!outcome.ok || JSON.stringify(outcome.counts) !== JSON.stringify(expected))
        throw new Error(`${task.what}, ${way}: ${JSON.stringify(outcome.counts)} ${outcome.text}`);
      return seconds;
    };
    const watched = async (way: Way): Promise<number> => {
      const peaks = watchPeaks(({ pid, command }) => (/\/(start|nothing)\.js/.test(command) && isOurs(pid) ? "provider" : undefined));
      await timed(way);
      return (peaks.stop().get("provider") ?? NaN) * 2 ** 20;
    };
    // the first run of each, which warms what both share, is the one whose memory is looked at
    const bytes = { plugin: await watched("plugin"), floor: await watched("floor") };
    const seconds = await inTurns(repeats, ways, timed);
    return {
      what: task.what,
      pluginSeconds: seconds.get("plugin") ?? [],
      floorSeconds: seconds.get("floor") ?? [],
      pluginBytes: bytes.plugin,
      floorBytes: bytes.floor,
    };
  } finally {
    for (const way of ways) await stacks[way].close();
  }
}

/** Until the line with its port, which is what the engine waits for. */
async function startSeconds(folder: string): Promise<number> {
  const began = performance.now();
  const child = spawn(join(folder, "pulumi-resource-cloudlet"), ["127.0.0.1:1"], { stdio: ["pipe", "pipe", "inherit"] });
  await once(createInterface(child.stdout), "line", { signal: AbortSignal.timeout(30_000) });
  const seconds = (performance.now() - began) / 1000;
  child.stdin.end();
  await once(child, "exit", { signal: AbortSignal.timeout(30_000) });
  return seconds;
}

async function previewTask(count: number): Promise<Task> {
  const program = mixed(count);
  const state = await recorded(program);
  // the stack itself counts
  return { what: `preview of ${count}`, program, state, perform: (stack) => stack.preview(), expected: { same: count + 1 } };
}

async function main(): Promise<void> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-nothing-"));
  try {
    const plugins = { plugin: repository, floor: await makeFloor(join(directory, "floor")) };
    const folders = { ...plugins, empty: await makeEmpty(join(directory, "empty")) };
    const up: Task = { what: "up of 100", program: clusters(100), perform: (stack) => stack.up(), expected: { create: 101 } };
    const operations: Results["operations"] = [];
    const start: Results["start"] = { pluginSeconds: [], floorSeconds: [], emptySeconds: [] };
    const measureStarts = async (): Promise<void> => {
      const seconds = await inTurns(startsAtOnce, started, (way) => startSeconds(folders[way]));
      for (const way of started) start[`${way}Seconds`].push(...(seconds.get(way) ?? []));
    };
    for (const task of [await previewTask(100), await previewTask(1000), up]) {
      const measured = await measureTask(task, plugins);
      console.log(row(measured));
      operations.push(measured);
      await measureStarts();
    }
    const results = { operations, start };
    await mkdir(values.out, { recursive: true });
    await writeFile(join(values.out, "engine.json"), `${JSON.stringify(results, null, 1)}\n`);
    await writeFile(join(values.out, "engine.svg"), chart(results));
    await writeFile(join(values.out, "engine.md"), page(results));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

await main();
