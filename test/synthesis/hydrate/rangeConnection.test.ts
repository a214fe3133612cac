import { createHash, randomBytes, randomInt } from "node:crypto";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it } from "vitest";
import { RangeConnection, type Range } from "../../../provider/synthesis/hydrate/rangeConnection.ts";
import type { CloudletError } from "../../../provider/core/errors.ts";
import { Source } from "./source.ts";

const blob = randomBytes(8_000_000);
const digest = createHash("sha256").update(blob).digest("hex");
let directory: string;
let source: Source;

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-ranges-"));
  await writeFile(join(directory, "blob"), blob);
  source = await Source.offering({ digest, path: join(directory, "blob") });
});

afterEach(async () => {
  source.close();
  await rm(directory, { recursive: true });
});

it("gets all of what is asked for at once, in that order, from a source that is faster than the link", async () => {
  source.link.bytesPerSecond = 20e6;
  const ranges: Range[] = Array.from({ length: 1_000 }, () => {
    const offset = randomInt(0, blob.length - 1);
    return { offset, bytes: randomInt(1, Math.min(16_000, blob.length - offset) + 1) };
  });
  const wanted = Buffer.concat(ranges.map(({ offset, bytes }) => blob.subarray(offset, offset + bytes)));
  const pieces: Buffer[] = [];
  await new Promise<void>((resolve, reject) => {
    let missing = wanted.length;
    const received = (_offset: number, bytes: Buffer): void => {
      pieces.push(Buffer.from(bytes));
      missing -= bytes.length;
      if (missing === 0) resolve();
    };
    RangeConnection.dial(source.offer, digest, { received, lost: reject }).then((connection) => {
      for (const range of ranges) connection.request(range);
    }, reject);
  });
  expect(Buffer.concat(pieces).equals(wanted)).toBe(true);
});

it("ends where it asks for what is not there", async () => {
  const lost = await new Promise<CloudletError>((resolve, reject) => {
    RangeConnection.dial(source.offer, digest, { received: () => undefined, lost: resolve }).then(
      (connection) => connection.request({ offset: blob.length - 10, bytes: 11 }),
      reject,
    );
  });
  expect(lost).toMatchObject({ code: "UNREACHABLE", message: "gw1 closed the connection" });
});
