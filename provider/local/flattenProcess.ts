import { spawn } from "node:child_process";
import { createReadStream, createWriteStream } from "node:fs";
import { open } from "node:fs/promises";
import { pipeline } from "node:stream/promises";
import { createGunzip } from "node:zlib";
import type { z } from "zod";
import { packTree } from "../archive/pack.ts";
import { readTree, type Source } from "../archive/tree.ts";
import { CloudletError, codeOf, describeError } from "../core/errors.ts";
import { flattenSchema, type flattenedSchema } from "./flatten.ts";

process.once("message", (message) => void answer(message));
// whoever asked has ended
process.once("disconnect", () => process.exit(1));

/** What the process that `flatten` starts does. */
async function answer(message: unknown): Promise<void> {
  const said: z.infer<typeof flattenedSchema> = await work(message).then(
    () => ({}),
    (error: unknown) => {
      const { message, fix } = error instanceof CloudletError ? error : new CloudletError("BUG", describeError(error));
      return { failure: { code: codeOf(error), message, fix } };
    },
  );
  process.send?.(said);
}

async function work(message: unknown): Promise<void> {
  const { layers, target } = flattenSchema.parse(message);
  const sources: Source[] = [];
  for (const [index, { name, path }] of layers.entries()) sources.push({ name, open: await opener(path), whiteouts: index > 0 });
  await pipeline(packTree(await readTree(sources), sources), createWriteStream(target, { mode: 0o600 }));
}

/** How the tar in a layer is read, by what its first bytes say. */
async function opener(path: string): Promise<() => AsyncIterable<Buffer>> {
  const file = await open(path, "r");
  const magic = await file.read(Buffer.alloc(4), 0, 4, 0).finally(() => file.close());
  const hex = magic.buffer.toString("hex");
  if (hex.startsWith("1f8b")) return () => unzipped(path);
  if (hex === "28b52ffd") return () => unpacked(path);
  return () => createReadStream(path) as AsyncIterable<Buffer>;
}

async function* unzipped(path: string): AsyncGenerator<Buffer> {
  const gunzip = createGunzip();
  const fed = pipeline(createReadStream(path), gunzip);
  // an error of the source shows in what is read from it
  fed.catch(() => undefined);
  yield* gunzip as AsyncIterable<Buffer>;
  await fed;
}

/** Not every Node has zstd within. */
async function* unpacked(path: string): AsyncGenerator<Buffer> {
  const child = spawn("zstd", ["-dc", path], { stdio: ["ignore", "pipe", "ignore"] });
  const ended = new Promise<void>((resolve, reject) => {
    child.once("error", (cause) => reject(new CloudletError("UNSUPPORTED", "this machine has no zstd", { cause, fix: "install zstd" })));
    child.once("close", (code) =>
      code === 0 ? resolve() : reject(new CloudletError("INTEGRITY", `a layer cannot be decompressed`, { fix: "push it again" })),
    );
  });
  ended.catch(() => undefined);
  try {
    yield* child.stdout as AsyncIterable<Buffer>;
    await ended;
  } finally {
    child.kill();
  }
}
