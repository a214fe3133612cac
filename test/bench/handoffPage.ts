import { cpus, totalmem } from "node:os";
import { aim, type Measured as OfAim } from "./aims.ts";
import { barChart } from "./chart.ts";
import type { Cell, Measured, Way } from "./handoffResults.ts";
import { uniqueMib } from "./movingGuest.ts";
import { linkName } from "./synthesisPage.ts";
import { guestResources } from "./workload.ts";

type Done = Omit<Cell, "outcome"> & Measured;

/** At which the sizes of memory are compared. */
export const sizesLink = 100;
export const sizesMib = [512, 2048, 4096];

/** Totals of the reference papers in seconds, by Mbit/s, for the volume of a face recogniser. */
const papers = new Map([
  [5, 83],
  [10, 42],
  [15, 28],
  [25, 17],
]);
const without: readonly Way[] = ["live migration", "suspend, copy, resume", "full copy, boot"];

const totalOf = ({ totalSeconds }: Done): number => totalSeconds;
const gapOf = ({ gapSeconds }: Done): number => gapSeconds;
const floorOf = ({ bytes, mbit }: Done): number => (mbit === 0 ? 0 : (bytes * 8) / (mbit * 1e6));

/** What became of each cell that ended. */
function doneOf(cells: readonly Cell[]): Done[] {
  return cells.flatMap(({ outcome, ...cell }) => ("failed" in outcome ? [] : [{ ...cell, ...outcome }]));
}

export function placeOf({ mbit, delayMillis, memoryMib }: Omit<Cell, "outcome" | "way">): string {
  const size = memoryMib === guestResources.memoryMib ? [] : [`${memoryMib / 1024} GiB`];
  return [linkName(mbit), ...(delayMillis === 0 ? [] : [`${delayMillis} ms`]), ...size].join(", ");
}

/** The report's picture, as SVG. */
export function chart(cells: readonly Cell[]): string {
  const usual = doneOf(cells).filter(({ memoryMib }) => memoryMib === guestResources.memoryMib);
  const name = (cell: Done): string => placeOf(cell).replace(", ", "\n");
  const groups = [...new Set(usual.map(name))];
  const of = (way: Way, pick: (cell: Done) => number) =>
    groups.map((group) => {
      const cell = usual.find((candidate) => candidate.way === way && name(candidate) === group);
      return cell && pick(cell);
    });
  const series = (["handoff", ...without] as const).flatMap((way) => [
    [`${way}: total`, of(way, (cell) => cell.totalSeconds)] as const,
    ...(way === "handoff" || way === "live migration" ? [[`${way}: gap`, of(way, (cell) => cell.gapSeconds)] as const] : []),
  ]);
  return barChart("Move of a running cloudlet", groups, new Map(series));
}

/** One cell as a row of the report's table. */
export function row({ outcome, ...cell }: Cell): string {
  const place = `| ${placeOf(cell)} | ${cell.way} |`;
  if ("failed" in outcome) return `${place} ${"– | ".repeat(11)}${outcome.failed.replaceAll("|", "/").replaceAll("\n", " ")} |`;
  const { totalSeconds, gapSeconds, gapAtSeconds, bytes, wentBack, rewrittenMegabytes, report } = outcome;
  const seconds = (value: number): string => value.toFixed(2);
  const said = report
    ? [
        seconds(report.predictedPauseSeconds),
        seconds(report.pauseSeconds),
        String(report.rounds),
        report.memoryMegabytes.toFixed(1),
        report.diskMegabytes.toFixed(1),
      ]
    : ["–", "–", "–", "–", "–"];
  const forgotten = wentBack > 0 ? "what it had in memory is lost" : "";
  const columns = [
    seconds(totalSeconds),
    seconds(gapSeconds),
    seconds(gapAtSeconds),
    (bytes / 1e6).toFixed(1),
    floorOf({ ...cell, ...outcome }).toFixed(1),
  ];
  return `${place} ${[...columns, ...said, rewrittenMegabytes.toFixed(1), forgotten].join(" | ")} |`;
}

/** The report, as Markdown. */
export function page(cells: readonly Cell[]): string {
  const machine = `${cpus().length} cores (${cpus()[0]?.model ?? "?"}), ${Math.round(totalmem() / 2 ** 30)} GiB`;
  return `# Handoff

\`make bench-handoff\` writes this page, from what it has measured until ${new Date().toISOString().slice(0, 10)} (handoff.json): ${machine}, guests under software emulation with ${guestResources.memoryMib} MiB of memory, where nothing else is said, and an ${guestResources.diskMib / 1024} GiB disk; all hosts share the cores. Each cell was measured once.

![](handoff.svg)

The guest has ${uniqueMib.memory} MiB of random bytes in memory and ${uniqueMib.disk} MiB on its disk, has written ${uniqueMib.freed} MiB more there and deleted them again, and rewrites 100 KB of memory 20 times a second with new random bytes, and a counter with them. It moves after 15 s of this, when its kernel has given back most of the memory that it has freed. The same guest moves

- **handoff**: by the agents, with the budget that a cloudlet has where nothing is said; base and memory of the base are on both gateways;
- **return**: the same, back to where it was before that handoff;
- **preseeded**: as by the first, to a gateway that was given a copy of what is the guest's own before, as \`handoff.preseed\` does;
- **live migration**: by QEMU's own: the disk mirrored to an NBD export, then memory by multifd through zstd, with a downtime limit of 1 s;
- **suspend, copy, resume**: saved memory and the whole disk through \`zstd -3\`;
- **full copy, boot**: the whole disk through \`zstd -3\`; what was in memory is lost.

A subscriber on a host of its own asks every 50 ms by a new connection, at the address of the source and of the target alike, and only at the target's once that has answered. Gap is its longest time without an answer, so the change of the endpoint is part of it; "gap at" is when that began. Total ends with the first answer at the target, or with the operation, whichever is later. MB are counted at the target's link, which is the one that is shaped and delayed, and the subscriber's questions there are among them. A delay is added to each round trip, in user space, and an unshaped link with one is as fast as the process that does so; it is on the target's link as well, so the subscriber is that far from the target. Floor = bytes / bandwidth. Predicted and pause are what the source's agent expected and measured; memory and disk are what it had to send, before compression. Rewritten is what the guest came to before it moved: a busy machine keeps it from more.

## Moves

| Link | Way | Total s | Gap s | Gap at s | MB | Floor s | Predicted pause s | Pause s | Rounds | Memory MB | Disk MB | Rewritten MB/s | |
|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|
${cells.map(row).join("\n")}

## Against the aims

${aims(doneOf(cells))}

The random bytes alone take ${uniqueSeconds(5)}, ${uniqueSeconds(10)}, ${uniqueSeconds(15)} and ${uniqueSeconds(25)} s at 5, 10, 15 and 25 Mbit/s, which is more than the papers' totals for their guests: nothing can move this one within those.

Cells that failed are in no row here. The other ways are those over the same link; the one that was best there is named.
`;
}

/** How long the link takes for what nothing can compress. */
function uniqueSeconds(mbit: number): string {
  return (((uniqueMib.memory + uniqueMib.disk) * 2 ** 20 * 8) / (mbit * 1e6)).toFixed(0);
}

/** Each aim beside what was measured for it. */
function aims(cells: readonly Done[]): string {
  const usual = cells.filter(({ memoryMib }) => memoryMib === guestResources.memoryMib);
  const ours = usual.filter(({ way }) => way === "handoff");
  const named = (pick: (cell: Done) => number) => (cell: Done) => ({ of: placeOf(cell), value: pick(cell) });
  /** Beside the one of the other ways that is best in this. */
  const compared = (of: (cell: Done) => number, by: (own: number, best: number) => number): OfAim[] =>
    ours.flatMap((cell) => {
      const best = beside(cell, usual).toSorted((one, other) => of(one) - of(other))[0];
      return best === undefined ? [] : [{ of: `${placeOf(cell)} (${best.way})`, value: by(of(cell), of(best)) }];
    });
  const slow = (cell: Done): boolean => cell.mbit !== 0 && cell.mbit < 10;
  const atFive = usual.filter(({ way, mbit }) => way === "preseeded" && mbit === 5);
  const atTen = usual.filter(({ way, mbit }) => way === "return" && mbit === 10);
  return [
    "| Aim | Measured | Kept |",
    "|---|---|---|",
    aim(
      "at most half the shortest total of the other ways: ratio",
      0.5,
      compared(totalOf, (own, best) => own / best),
    ),
    aim(
      "no longer gap than the shortest of the other ways: seconds over that",
      0,
      compared(gapOf, (own, best) => own - best),
    ),
    aim(
      "total at most 1.15 × floor + 2 s: seconds over that",
      0,
      ours.map(named((cell) => cell.totalSeconds - (1.15 * floorOf(cell) + 2))),
    ),
    aim("gap within 1 s from 10 Mbit/s up", 1, ours.filter((cell) => !slow(cell)).map(named(gapOf))),
    aim("gap within 2 s at 5 Mbit/s", 2, ours.filter(slow).map(named(gapOf))),
    aim(
      "below the reference papers' totals (83, 42, 28 and 17 s at 5, 10, 15 and 25 Mbit/s): ratio",
      1,
      ours.filter(({ mbit }) => papers.has(mbit)).map(named(({ mbit, totalSeconds }) => totalSeconds / (papers.get(mbit) ?? 0))),
    ),
    aim("preseeded: total within 5 s at 5 Mbit/s", 5, atFive.map(named(totalOf))),
    aim("return to a node visited before: total within 5 s at 10 Mbit/s", 5, atTen.map(named(totalOf))),
    aim("gap does not grow with memory: seconds over that of the smallest", 0.2, sizes(cells)),
  ].join("\n");
}

/** What the other ways came to over the same link. */
function beside({ mbit, delayMillis }: Done, cells: readonly Done[]): Done[] {
  return cells.filter((cell) => without.includes(cell.way) && cell.mbit === mbit && cell.delayMillis === delayMillis);
}

function sizes(cells: readonly Done[]): OfAim[] {
  const [smallest, ...larger] = cells
    .filter(({ way, mbit, delayMillis }) => way === "handoff" && mbit === sizesLink && delayMillis === 0)
    .toSorted((one, other) => one.memoryMib - other.memoryMib);
  if (smallest === undefined) return [];
  return larger.map((cell) => ({ of: `${cell.memoryMib / 1024} GiB`, value: cell.gapSeconds - smallest.gapSeconds }));
}
