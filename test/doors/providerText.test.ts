import { execFileSync } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { build } from "esbuild";
import { afterAll, beforeAll, describe, expect, it } from "vitest";

const repository = resolve(import.meta.dirname, "../..");
const bin = join(repository, "node_modules", ".bin", "node");
let folder: string;

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-text-"));
  await build({
    entryPoints: [join(repository, "sdk", "dynamic", "providers.ts")],
    outfile: join(folder, "providers.cjs"),
    bundle: true,
    platform: "node",
    format: "cjs",
    target: "node22",
    external: ["pulumi-cloudlet/hooks", "@pulumi/pulumi"],
  });
});
afterAll(() => rm(folder, { recursive: true, force: true }));

// what @pulumi/pulumi stores with each resource, by its own serializer
const serialize = `
  const text = async (provider) => (await serializer.serializeFunction(() => provider, { allowSecrets: true })).text;
  Promise.all(Object.values(providers).map(text)).then((texts) => console.log(JSON.stringify(texts)));
`;

function textsIn(form: "cjs" | "mjs"): string[] {
  const serializer = JSON.stringify(join(repository, "node_modules/@pulumi/pulumi/runtime/closure/serializeClosure.js"));
  const module = JSON.stringify(join(folder, "providers.cjs"));
  const load =
    form === "cjs"
      ? `const serializer = require(${serializer}); const { providers } = require(${module});`
      : `import serializer from ${serializer}; import { providers } from ${module};`;
  const flags = form === "cjs" ? ["--input-type=commonjs"] : ["--input-type=module"];
  return JSON.parse(
    execFileSync(bin, [...flags, "-e", `${load}\n${serialize}`], {
      encoding: "utf8",
      timeout: 30_000,
      env: { ...process.env, NO_COLOR: "1" },
    }),
  ) as string[];
}

describe("the text that Pulumi stores with every resource", () => {
  it.each(["cjs", "mjs"] as const)("is under 1 KB and the same as ever in a program run as %s", { timeout: 30_000 }, (form) => {
    const texts = textsIn(form);
    expect(texts).toHaveLength(7);
    for (const text of texts) expect(Buffer.byteLength(text)).toBeLessThan(1024);
    expect(texts[1]).toMatchInlineSnapshot(`
      "exports.handler = __f0;

      var __provider = {token: "cloudlet:index:Node", configure: __f1};

      function __f1() {
        return (function() {
          with({ this: undefined, arguments: undefined }) {

      return function /*configure*/() {
            Object.assign(this, require("pulumi-cloudlet/hooks").hooksOf(this.token));
            return Promise.resolve();
          };

          }
        }).apply(undefined, undefined).apply(this, arguments);
      }

      function __f0() {
        return (function() {
          with({ provider: __provider, this: undefined, arguments: undefined }) {

      return () => provider;

          }
        }).apply(undefined, undefined).apply(this, arguments);
      }
      "
    `);
    const anonymous = texts.map((text) => text.replace(/index:\w+/, "index:X"));
    expect(new Set(anonymous).size).toBe(1);
  });
});
