import { cpus, totalmem } from "node:os";
import { aim, type Measured } from "./aims.ts";
import { barChart } from "./chart.ts";
import type { Cell, Sealed } from "./synthesisResults.ts";
import { guestResources } from "./workload.ts";

/** A start that waits for no link is short: the one in the middle of so many is told. */
export const localStarts = 5;

export const linkName = (mbit: number): string => (mbit === 0 ? "unshaped" : `${mbit} Mbit/s`);

function table(cells: readonly Cell[]): string {
  const rows = cells.map(
    (cell) =>
      `| ${cell.overlay} | ${cell.way === "overlay local" ? "–" : linkName(cell.mbit)} | ${cell.way} | ${cell.rung} | ${(cell.bytes / 1e6).toFixed(2)} | ${cell.floorSeconds.toFixed(1)} | ${cell.firstReplySeconds.toFixed(2)} | ${cell.totalSeconds.toFixed(2)} |`,
  );
  return [
    "| Overlay | Link | Way | Rung | MB sent | Floor s | First reply s | Total s |",
    "|---|---|---|---|--:|--:|--:|--:|",
    ...rows,
  ].join("\n");
}

/** The report's picture, as SVG. */
export function chart(cells: readonly Cell[]): string {
  const groups = [
    ...new Set(cells.filter(({ way }) => way === "overlay remote").map(({ overlay, mbit }) => `${overlay}\n${linkName(mbit)}`)),
  ];
  const of = (way: Cell["way"], pick: (cell: Cell) => number) =>
    groups.map((group) => {
      const cell = cells.find((candidate) => candidate.way === way && `${candidate.overlay}\n${linkName(candidate.mbit)}` === group);
      return cell && pick(cell);
    });
  return barChart(
    "Start of a cloudlet on a gateway",
    groups,
    new Map([
      ["overlay remote: first reply", of("overlay remote", (cell) => cell.firstReplySeconds)],
      ["overlay remote: nothing missing any more", of("overlay remote", (cell) => cell.totalSeconds)],
      ["full image copied, boot", of("full image, boot", (cell) => cell.totalSeconds)],
      ["full state copied, resume", of("full state, resume", (cell) => cell.totalSeconds)],
    ]),
  );
}

const mega = (bytes: number, digits: number): string => (bytes / 1e6).toFixed(digits);

export function overlayRow({ overlay, packBytes, memoryBytes, diskBytes, streamBytes, buildSeconds, quickSeconds }: Sealed): string {
  return `| ${overlay} | ${mega(packBytes, 2)} | ${mega(memoryBytes, 1)} | ${mega(diskBytes, 1)} | ${mega(streamBytes, 2)} | ${buildSeconds.toFixed(1)} | ${quickSeconds.toFixed(2)} |`;
}

/** The report, as Markdown. */
export function page(overlays: readonly Sealed[], cells: readonly Cell[]): string {
  const machine = `${cpus().length} cores (${cpus()[0]?.model ?? "?"}), ${Math.round(totalmem() / 2 ** 30)} GiB`;
  return `# Synthesis

\`make bench-synthesis\` writes this page, from what it has measured until ${new Date().toISOString().slice(0, 10)} (synthesis.json): ${machine}, guests under software emulation with ${guestResources.memoryMib} MiB of memory and an ${guestResources.diskMib / 1024} GiB disk; all hosts share the cores. Each cell was measured once, but "overlay local" ${localStarts} times: the one in the middle is told.

![](synthesis.svg)

## Overlays

| Application | MB sealed | MB of memory | MB of disk | MB by one stream | Build s | \`zstd -3\` s |
|---|--:|--:|--:|--:|--:|--:|
${overlays.map(overlayRow).join("\n")}

One stream: the same blocks, each once, through one \`zstd -19 --long\`, of which nothing can be used before all that precedes it. A build starts the base, runs the application, saves it, resumes it once and packs it; \`zstd -3\` is the time of one such process for the blocks alone. The application is a web server that answers with a file, and random bytes, half of them in memory and half on disk, so that sizes are what they are called after; idle is the web server alone.

## Starts

Floor = bytes / bandwidth. First reply and total are seen from outside, by a subscriber that asks every 10 ms. The base and its memory are on the gateway before the first two ways. "full image" and "full state" are what one does without overlays.

${table(cells)}

## Against the aims

${aims(overlays, cells)}

Why an overlay can be smaller than one stream is in [decision 0025](../decisions/0025-overlays-hold-differences-from-their-parent.md), and why a build cannot take as little time as \`zstd -3\` in [decision 0012](../decisions/0012-overlay-format.md).
`;
}

/** Each aim beside what was measured for it. */
function aims(overlays: readonly Sealed[], cells: readonly Cell[]): string {
  const local = cells.filter(({ way }) => way === "overlay local");
  const remote = cells.filter(({ way }) => way === "overlay remote");
  const object = (mbit: number) => remote.filter((cell) => cell.overlay === "OBJECT" && cell.mbit === mbit);
  const reply = ({ overlay, firstReplySeconds }: Cell): Measured => ({ of: overlay, value: firstReplySeconds });
  return [
    "| Aim | Measured | Kept |",
    "|---|---|---|",
    aim("overlay on the node: first reply within 0.5 s", 0.5, local.map(reply)),
    aim("OBJECT at 25 Mbit/s: first reply within 2 s", 2, object(25).map(reply)),
    aim("OBJECT at 5 Mbit/s: first reply within 5 s", 5, object(5).map(reply)),
    aim(
      "total at most 1.15 × floor + 1 s: seconds over that",
      0,
      remote.map(({ overlay, mbit, totalSeconds, floorSeconds }) => ({
        of: `${overlay} at ${linkName(mbit)}`,
        value: totalSeconds - (1.15 * floorSeconds + 1),
      })),
    ),
    aim(
      "no larger than one stream of `zstd -19 --long`: ratio",
      1,
      overlays.map(({ overlay, packBytes, streamBytes }) => ({ of: overlay, value: packBytes / streamBytes })),
    ),
    aim(
      "build within 1.5 × `zstd -3`: ratio",
      1.5,
      overlays.map(({ overlay, buildSeconds, quickSeconds }) => ({ of: overlay, value: buildSeconds / quickSeconds })),
    ),
  ].join("\n");
}
