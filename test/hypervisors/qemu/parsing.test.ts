import { expect, it } from "vitest";
import { exitingBootSector } from "../../../provider/hypervisors/qemu/acceleration.ts";
import { lineSplitter } from "../../../provider/hypervisors/qemu/jsonLines.ts";
import { parseStat } from "../../../provider/agent/detached.ts";
import { tapName } from "../../../provider/hypervisors/qemu/tap.ts";

it("reads pid, state and start time also where the command has spaces and parentheses", () => {
  const rest = "S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1000 200";
  expect(parseStat(`42 (sh) ${rest}`)).toEqual({ pid: 42, state: "S", startTime: "987654" });
  expect(parseStat(`42 (a) b (c) ${rest}\n`)).toEqual({ pid: 42, state: "S", startTime: "987654" });
  expect(parseStat("")).toBeUndefined();
  expect(parseStat("42 (sh) S 1")).toBeUndefined();
});

it("throws away what came before a guest agent's sentinel", () => {
  const lines: string[] = [];
  const split = lineSplitter(0xff, (line) => void lines.push(line));
  split(Buffer.from('{"half'));
  split(Buffer.concat([Buffer.from('": 1}\nold\n'), Buffer.from([0xff]), Buffer.from('{"return": 7}\n{"next"')]));
  split(Buffer.from(": 1}\n\n"));
  expect(lines).toEqual(['{"return": 7}', '{"next": 1}']);
});

it("is a boot sector that a BIOS accepts", () => {
  const sector = exitingBootSector();
  expect(sector).toHaveLength(512);
  expect(sector.readUInt16LE(510)).toBe(0xaa55);
});

it("names taps within Linux's 15 characters, differently for each guest", () => {
  expect(tapName("demo-1a2b3c4d")).toMatch(/^cl[0-9a-f]{8}$/);
  expect(tapName("demo-1a2b3c4d")).not.toBe(tapName("demo-1a2b3c4e"));
});
