import { expect, it } from "vitest";
import { page, row } from "./handoffPage.ts";
import type { Cell, Measured, Way } from "./handoffResults.ts";

function cell(way: Way, outcome: Partial<Measured> | { failed: string }, place: Partial<Cell> = {}): Cell {
  const measured = { totalSeconds: 10, gapSeconds: 1, gapAtSeconds: 9, bytes: 5e6, wentBack: 0, rewrittenMegabytes: 2, ...outcome };
  return { way, mbit: 5, delayMillis: 0, memoryMib: 1024, outcome: "failed" in outcome ? outcome : measured, ...place };
}

/** What the report says of an aim that begins like this. */
function verdict(cells: readonly Cell[], aim: string): string | undefined {
  return page(cells)
    .split("\n")
    .find((line) => line.startsWith(`| ${aim}`));
}

it("a handoff is compared with what is best of the other ways over the same link", () => {
  const cells = [
    cell("handoff", { totalSeconds: 12 }),
    cell("live migration", { totalSeconds: 20, gapSeconds: 0.4 }),
    cell("full copy, boot", { totalSeconds: 15, gapSeconds: 15 }),
    cell("suspend, copy, resume", { totalSeconds: 1 }, { mbit: 10 }),
    cell("suspend, copy, resume", { failed: "QEMU fell" }),
  ];
  expect(verdict(cells, "at most half the shortest total")).toContain("5 Mbit/s (full copy, boot) 0.800 | 0 of 1 |");
  expect(verdict(cells, "no longer gap")).toContain("5 Mbit/s (live migration) 0.600 | 0 of 1 |");
});

it("each aim looks at its own links, and says so where nothing was measured", () => {
  const cells = [
    cell("handoff", { gapSeconds: 1.5 }),
    cell("handoff", { gapSeconds: 0.5 }, { mbit: 10 }),
    cell("return", { totalSeconds: 4 }, { mbit: 10 }),
  ];
  expect(verdict(cells, "gap within 1 s")).toContain("10 Mbit/s 0.500 | yes |");
  expect(verdict(cells, "gap within 2 s")).toContain("5 Mbit/s 1.500 | yes |");
  expect(verdict(cells, "return to a node")).toContain("10 Mbit/s 4.000 | yes |");
  expect(verdict(cells, "total at most 1.15")).toContain("10 Mbit/s 3.400 | 1 of 2 |");
  expect(verdict(cells, "preseeded")).toContain("| not measured | – |");
});

it("what failed is told as such, in one line of the table", () => {
  expect(row(cell("live migration", { failed: "QEMU's | migration\nfailed" }))).toBe(
    "| 5 Mbit/s | live migration | – | – | – | – | – | – | – | – | – | – | – | QEMU's / migration failed |",
  );
});

it("memory of other sizes is compared with the smallest", () => {
  const at = (memoryMib: number, gapSeconds: number): Cell => cell("handoff", { gapSeconds }, { mbit: 100, memoryMib });
  expect(verdict([at(512, 0.5), at(1024, 0.6), at(4096, 0.9)], "gap does not grow")).toContain("4 GiB 0.400 | 1 of 2 |");
});
