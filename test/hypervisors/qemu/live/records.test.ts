import { randomBytes } from "node:crypto";
import { describe, expect, it } from "vitest";
import { RecordReader, RecordWriter, type LiveRecord } from "../../../../provider/hypervisors/qemu/live/records.ts";

function readBack(bytes: Buffer, pieces: number): LiveRecord[] {
  const reader = new RecordReader();
  const found: LiveRecord[] = [];
  for (let at = 0; at < bytes.length; at += pieces) {
    // what a record holds is valid until the next push
    for (const record of reader.push(bytes.subarray(at, at + pieces)))
      found.push("bytes" in record ? { ...record, bytes: Buffer.from(record.bytes) } : record);
  }
  expect(reader.isEmpty).toBe(true);
  return found;
}

describe("records of a running guest", () => {
  const [page, disk] = [randomBytes(4096), randomBytes(8192)];
  const writer = new RecordWriter();
  writer.map({ section: 2, names: ["pc.ram"] });
  writer.verbatim(Buffer.from("QEVM"));
  writer.page(0, 7, page);
  for (const unit of [8, 9, 10, 20]) writer.zeroPage(0, unit);
  for (const unit of [21, 22]) writer.referredPage(0, unit, { image: 1, unit: unit + 100 });
  writer.referredPage(0, 23, { image: 1, unit: 5 });
  writer.disk(1, 3, disk);
  writer.diskZeros(1, 5, 4);
  writer.diskCopy(0, 9, { image: 0, unit: 77 });
  writer.diskCopy(0, 10, { image: 0, unit: 78 });
  writer.end(0);
  const bytes = Buffer.concat(writer.take(true));

  it.each([1, 13, 4096, 1_000_000])("come back as they were written, in pieces of %i bytes", (pieces) => {
    expect(readBack(bytes, pieces)).toEqual([
      { letter: "B", map: { section: 2, names: ["pc.ram"] } },
      { letter: "V", bytes: Buffer.from("QEVM") },
      { letter: "P", block: 0, unit: 7, bytes: page },
      { letter: "Z", block: 0, unit: 8, count: 3 },
      { letter: "Z", block: 0, unit: 20, count: 1 },
      { letter: "R", block: 0, unit: 21, count: 2, place: { image: 1, unit: 121 } },
      { letter: "R", block: 0, unit: 23, count: 1, place: { image: 1, unit: 5 } },
      { letter: "D", disk: 1, unit: 3, bytes: disk },
      { letter: "H", disk: 1, unit: 5, count: 4 },
      { letter: "C", disk: 0, unit: 9, count: 2, place: { image: 0, unit: 77 } },
      { letter: "E", round: 0 },
    ]);
  });

  it("are refused where they are of no known kind, or longer than any", () => {
    expect(() => [...new RecordReader().push(Buffer.from("?"))]).toThrow("damaged");
    const endless = Buffer.from("V\xff\xff\xff\xff", "latin1");
    expect(() => [...new RecordReader().push(endless)]).toThrow("damaged");
  });
});
