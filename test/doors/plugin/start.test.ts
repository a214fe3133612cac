import { execFile } from "node:child_process";
import { copyFile, mkdir, mkdtemp, readdir, readFile, rm, stat, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterEach, beforeEach, expect, it } from "vitest";

const run = promisify(execFile);
const provider = resolve(import.meta.dirname, "../../../provider");
/** As they lie there. */
const [start, beside] = ["doors/plugin/start.ts", "local/cacheFolder.ts"];
/** So much that it counts: a thousand functions that each run once. */
const functions = Array.from(
  { length: 1000 },
  (_, index) => `function f${index}(a) { return a.map((b) => b * ${index}).join("${index}"); }`,
);
const calls = functions.map((_, index) => `f${index}([1]);`);

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-start-"));
  for (const file of [start, beside]) {
    await mkdir(dirname(join(folder, file)), { recursive: true });
    await copyFile(join(provider, file), join(folder, file));
  }
  await writePlugin("first");
});
afterEach(() => rm(folder, { recursive: true, force: true }));

/** A fake plugin, which tells what it is, with what it was called, and how much code is compiled before it does anything. */
function writePlugin(word: string): Promise<void> {
  const tell = `require("node:v8").getHeapCodeStatistics().bytecode_and_metadata_size`;
  const told = `{ word: "${word}", arguments: process.argv.slice(2), folder: __dirname, compiled: ${tell} }`;
  return writeFile(
    join(folder, "doors/plugin/plugin.js"),
    `${functions.join("\n")}\nconsole.log(JSON.stringify(${told}));\n${calls.join("\n")}\n`,
  );
}

interface Told {
  word: string;
  arguments: string[];
  folder: string;
  compiled: number;
}

async function started(home = join(folder, "cache")): Promise<Told> {
  const env = { ...process.env, XDG_CACHE_HOME: home };
  const { stdout, stderr } = await run(process.execPath, [join(folder, start), "127.0.0.1:1"], { env, timeout: 30_000 });
  expect(stderr.replace(/^.*ExperimentalWarning.*\n.*\n/, "")).toBe("");
  return JSON.parse(stdout) as Told;
}

async function keptFile(): Promise<string> {
  const compiled = join(folder, "cache/pulumi-cloudlet/compiled");
  const names = await readdir(compiled);
  expect(names).toHaveLength(1);
  return join(compiled, names[0] ?? "");
}

it("the plugin is run as by Node.js itself, and what was compiled of it is there the next time", async () => {
  const first = await started();
  expect(first).toMatchObject({ word: "first", arguments: ["127.0.0.1:1"], folder: join(folder, "doors/plugin") });
  const second = await started();
  expect(second).toMatchObject({ word: "first", arguments: ["127.0.0.1:1"], folder: join(folder, "doors/plugin") });
  expect(second.compiled).toBeGreaterThan(first.compiled + 100_000);
});

it("what has nothing new compiled writes nothing", async () => {
  await started();
  const { ino } = await stat(await keptFile());
  await started();
  expect((await stat(await keptFile())).ino).toBe(ino);
});

it("another plugin of the same length is not run by the code of the first", async () => {
  await started();
  await writePlugin("other");
  expect(await started()).toMatchObject({ word: "other" });
  expect(await started()).toMatchObject({ word: "other" });
});

it.each([
  ["one byte of the code", (file: Buffer) => file.fill((file[5000] ?? 0) ^ 1, 5000, 5001)],
  ["its end missing", (file: Buffer) => file.subarray(0, file.length / 2)],
  ["nothing in it", () => Buffer.alloc(0)],
])("a damaged file is not used, and replaced: %s", async (_, damage) => {
  await started();
  const path = await keptFile();
  const sound = await readFile(path);
  await writeFile(path, damage(Buffer.from(sound)));
  expect(await started()).toMatchObject({ word: "first" });
  expect(await keptFile()).toBe(path);
  expect((await readFile(path)).length).toBeGreaterThan(sound.length / 1.1);
});

it("a home that cannot be written is no reason to fail", async () => {
  const file = join(folder, "file");
  await writeFile(file, "");
  expect(await started(file)).toMatchObject({ word: "first" });
});

it("what was written more than a month ago goes", async () => {
  const compiled = join(folder, "cache/pulumi-cloudlet/compiled");
  const old = join(compiled, "plugin-1");
  await mkdir(old, { recursive: true });
  const then = Date.now() / 1000 - 31 * 24 * 3600;
  await utimes(old, then, then);
  await started();
  await keptFile();
});
