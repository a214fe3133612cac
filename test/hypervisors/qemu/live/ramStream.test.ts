import { randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { RamStream, type RamBlock } from "../../../../provider/hypervisors/qemu/live/ramStream.ts";
import { RamWriter } from "../../../../provider/hypervisors/qemu/live/ramWriter.ts";

const u8 = (value: number) => Buffer.from([value]);
const u16 = (value: number) => Buffer.from([value >> 8, value & 255]);
const u32 = (value: number) => Buffer.from([value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255]);
const u64 = (value: number) => Buffer.concat([u32(Math.floor(value / 2 ** 32)), u32(value % 2 ** 32)]);
const named = (text: string) => Buffer.concat([u8(text.length), Buffer.from(text)]);
const footer = (section: number) => Buffer.concat([u8(0x7e), u32(section)]);
const [zero, memorySize, whole, end, again] = [0x02, 0x04, 0x08, 0x10, 0x20];
const high = 5 * 2 ** 30;

const opening = Buffer.concat([Buffer.from("QEVM"), u32(3), u8(7), u32(11), Buffer.from("pc-q35-demo")]);
const blocks: RamBlock[] = [
  { name: "pc.ram", bytes: 6 * 2 ** 30 },
  { name: "pc.bios", bytes: 262_144 },
];
const total = blocks.reduce((sum, { bytes }) => sum + bytes, 0);
const list = Buffer.concat(blocks.flatMap(({ name, bytes }) => [named(name), u64(bytes)]));
const ramStart = Buffer.concat([u8(1), u32(2), named("ram"), u32(0), u32(4), u64(total + memorySize), list, u64(end), footer(2)]);
const otherStart = Buffer.concat([u8(1), u32(9), named("dirty-bitmap"), u32(0), u32(1), Buffer.from("guard"), footer(9)]);
const otherPart = Buffer.concat([u8(2), u32(9), u8(1), footer(9)]);
const command = Buffer.concat([u8(8), u16(3), u16(0)]);
const [first, second] = [randomBytes(4096), randomBytes(4096)];
const pages = Buffer.concat([u64(high + whole), named("pc.ram"), first, u64(high + 4096 + zero + again), u8(0)]);
const part = Buffer.concat([u8(2), u32(2), pages, u64(end), footer(2)]);
const ending = Buffer.concat([u8(3), u32(2), u64(8192 + whole), named("pc.bios"), second, u64(end), footer(2)]);
const endOfRam = Buffer.concat([u8(3), u32(2), u64(end), footer(2)]);
const devices = randomBytes(1000);
const stream = Buffer.concat([opening, command, ramStart, otherStart, part, otherPart, ending, devices]);

interface Seen {
  blocks: { section: number; blocks: readonly RamBlock[] }[];
  pages: [number, number, Buffer | undefined][];
  verbatim: Buffer;
}

function read(bytes: Buffer, pieces: number): Seen {
  const seen: Seen = { blocks: [], pages: [], verbatim: Buffer.alloc(0) };
  const reader = new RamStream({
    blocks: (section, found) => seen.blocks.push({ section, blocks: found }),
    page: (block, index, data) => seen.pages.push([block, index, data && Buffer.from(data)]),
    verbatim: (more) => (seen.verbatim = Buffer.concat([seen.verbatim, more])),
  });
  for (let at = 0; at < bytes.length; at += pieces) reader.push(bytes.subarray(at, at + pieces));
  expect(reader.isOver).toBe(true);
  return seen;
}

describe("QEMU's migration stream", () => {
  it.each([1, 7, 4096, 1_000_000])("is taken apart into pages and what is QEMU's own, in pieces of %i bytes", (pieces) => {
    const seen = read(stream, pieces);
    expect(seen.blocks).toEqual([{ section: 2, blocks }]);
    expect(seen.pages).toEqual([
      [0, high / 4096, first],
      [0, high / 4096 + 1, undefined],
      [1, 2, second],
    ]);
    // what others have to say while memory goes on is left out
    expect(seen.verbatim.equals(Buffer.concat([opening, ramStart, otherStart, endOfRam, devices]))).toBe(true);
  });

  it("is written again so that it reads the same", () => {
    const writer = new RamWriter(2, ["pc.ram", "pc.bios"]);
    writer.page(0, high / 4096, first);
    writer.page(0, high / 4096 + 1, undefined);
    const sections = [writer.take()];
    writer.page(1, 2, second);
    sections.push(writer.take());
    expect(writer.take()).toBeUndefined();
    const again = read(Buffer.concat([opening, ramStart, ...sections.map((it) => it ?? Buffer.alloc(0)), endOfRam, devices]), 1_000_000);
    expect(again.pages).toEqual(read(stream, 1_000_000).pages);
  });

  it("is refused where it has something that is not known", () => {
    const reader = (): RamStream => new RamStream({ blocks: () => undefined, page: () => undefined, verbatim: () => undefined });
    expect(() => reader().push(Buffer.from("not a stream of QEMU's"))).toThrow("its beginning");
    expect(() => reader().push(Buffer.concat([opening, ramStart, u8(4), u32(5), u8(0)]))).toThrow("a section of kind 4");
    const compressed = Buffer.concat([u8(2), u32(2), u64(0x100), named("pc.ram")]);
    expect(() => reader().push(Buffer.concat([opening, ramStart, compressed]))).toThrow("a page of kind");
  });
});
