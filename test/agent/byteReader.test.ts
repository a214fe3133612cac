import { PassThrough } from "node:stream";
import { expect, it } from "vitest";
import { ByteReader } from "../../provider/agent/byteReader.ts";

it("takes exactly so many bytes, however they come", async () => {
  const stream = new PassThrough();
  const reader = new ByteReader(stream);
  const first = reader.take(5);
  stream.write("ab");
  setImmediate(() => stream.write("cdefg"));
  expect(String(await first)).toBe("abcde");
  expect(await reader.take(0)).toHaveLength(0);
  expect(String(await reader.take(2))).toBe("fg");
});

it("takes nothing of what ended before it was whole", async () => {
  const stream = new PassThrough();
  const reader = new ByteReader(stream);
  stream.end("abc");
  expect(await reader.take(4)).toBeUndefined();
  expect(await reader.take(1)).toBeUndefined();
});
