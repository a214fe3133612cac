import { describe, expect, it } from "vitest";
import { contentsOf } from "../../../provider/hypervisors/lxd/multipart.ts";

const part = (content: string) =>
  `--bound\r\nContent-Disposition: form-data; name="x"\r\nContent-Type: application/octet-stream\r\n\r\n${content}\r\n`;
const body = `${part("one\r\n--boun\r\nd")}${part("\r\n\r\ntwo")}--bound--\r\n`;

async function read(text: string, size: number): Promise<string> {
  const chunks = text.match(new RegExp(`[^]{1,${String(size)}}`, "g")) ?? [];
  const stream = (async function* () {
    for (const chunk of chunks) yield await Promise.resolve(Buffer.from(chunk));
  })();
  const found: Buffer[] = [];
  for await (const content of contentsOf(stream, "bound")) found.push(content);
  return Buffer.concat(found).toString();
}

describe("the contents of a multipart body", () => {
  it.each([1, 2, 7, 64, 10_000])("are all parts, one after the other, in chunks of %i bytes", async (size) => {
    expect(await read(body, size)).toBe("one\r\n--boun\r\nd\r\n\r\ntwo");
  });

  it("end with the last delimiter, whatever follows it", async () => {
    expect(await read(`${body}\r\n--bound--\r\n`, 5)).toBe("one\r\n--boun\r\nd\r\n\r\ntwo");
  });

  it.each([body.slice(0, -6), part("one"), "", `--bound\r\n${"x".repeat(20_000)}`])("are refused where they are cut off", async (text) => {
    await expect(read(text, 100)).rejects.toMatchObject({ code: "INTEGRITY" });
  });
});
