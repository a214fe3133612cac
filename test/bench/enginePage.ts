import { cpus, totalmem } from "node:os";
import { z } from "zod";
import { aim } from "./aims.ts";
import { barChart } from "./chart.ts";

export const resultsSchema = z.object({
  operations: z.array(
    z.object({
      /** `preview of 100` */
      what: z.string(),
      /** Of all runs. */
      pluginSeconds: z.array(z.number()),
      /** Through the fake provider that does nothing. */
      floorSeconds: z.array(z.number()),
      /** The most that the plugin's process ever had, in another run. */
      pluginBytes: z.number(),
      floorBytes: z.number(),
    }),
  ),
  /** Of processes, until they can be called; `emptySeconds` is Node.js itself. */
  start: z.object({ pluginSeconds: z.array(z.number()), floorSeconds: z.array(z.number()), emptySeconds: z.array(z.number()) }),
});
export type Results = z.infer<typeof resultsSchema>;
type Operation = Results["operations"][number];

export function middle(values: readonly number[]): number {
  return values.toSorted((one, other) => one - other)[Math.floor(values.length / 2)] ?? NaN;
}

const ratio = ({ pluginSeconds, floorSeconds }: Operation): number => middle(pluginSeconds) / middle(floorSeconds);

/** The middle, and how far the others are from it. */
function range(values: readonly number[]): string {
  return `${middle(values).toFixed(2)} (${Math.min(...values).toFixed(2)}–${Math.max(...values).toFixed(2)})`;
}

export function row(operation: Operation): string {
  const { what, pluginSeconds, floorSeconds, pluginBytes, floorBytes } = operation;
  const memory = [pluginBytes, floorBytes].map((bytes) => (bytes / 1e6).toFixed(0));
  return `| ${[what, pluginSeconds.length, range(pluginSeconds), range(floorSeconds), ratio(operation).toFixed(2), ...memory].join(" | ")} |`;
}

export function chart({ operations }: Results): string {
  return barChart(
    "Pulumi's engine with the plugin",
    operations.map(({ what }) => what),
    new Map([
      ["the plugin", operations.map(({ pluginSeconds }) => middle(pluginSeconds))],
      ["a provider that does nothing", operations.map(({ floorSeconds }) => middle(floorSeconds))],
    ]),
  );
}

/** The report, as Markdown. */
export function page(results: Results): string {
  const { operations, start } = results;
  const machine = `${cpus().length} cores (${cpus()[0]?.model ?? "?"}), ${Math.round(totalmem() / 2 ** 30)} GiB`;
  return `# The engine with the plugin

\`make bench-engine\` writes this page; last on ${new Date().toISOString().slice(0, 10)} (engine.json): ${machine}, Node.js ${process.versions.node}.

![](engine.svg)

Pulumi's engine runs the same program on the same state once with the plugin and once with a fake provider that does nothing: it keeps what the engine sends as it came and finds nothing changed. Both run in turns, each first as often as second; the one in the middle is told, with the shortest and the longest. Both are bundled programs for Node.js, so the difference is what the plugin itself does. The plugin has what its first run compiled, as it has anywhere but in its first run. Of ten resources of a preview one each is a Node, a Hypervisor, an EdgeCluster, a BaseImage and a Volume, and five are Cloudlets, all unchanged; their state was made by the plugin's own code with nodes that are made up. An \`up\` makes EdgeClusters, which are on no node. Memory is the most that the provider's process ever had, in a run that is not timed.

| Operation | Runs | Plugin s | Floor s | Ratio | Plugin MB | Floor MB |
|---|--:|--:|--:|--:|--:|--:|
${operations.map(row).join("\n")}

From the start of its process until the engine could call it, the plugin took ${range(start.pluginSeconds)} s, the provider that does nothing ${range(start.floorSeconds)} s, and Node.js with an empty program ${range(start.emptySeconds)} s (${start.pluginSeconds.length} starts each, in turns, a third of them after each operation of the table).

## Against the aims

| Aim | Measured | Kept |
|---|---|---|
${aims(results).join("\n")}
`;
}

function aims({ operations, start }: Results): string[] {
  const each = (pick: (operation: Operation) => number) => operations.map((operation) => ({ of: operation.what, value: pick(operation) }));
  return [
    aim("at most 1.15 × the floor: ratio", 1.15, each(ratio)),
    aim(
      "at most 150 MB of memory: MB",
      150,
      each(({ pluginBytes }) => pluginBytes / 1e6),
    ),
    aim("ready within 0.15 s", 0.15, [{ of: "start", value: middle(start.pluginSeconds) }]),
  ];
}
