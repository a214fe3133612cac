import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CustomResource } from "@pulumi/pulumi";
import { build } from "esbuild";
import { openStack, type TestStack } from "../engine.ts";

export type ToyArgs = Record<string, unknown>;
type ToyClass = new (name: string, args: ToyArgs, options?: object) => CustomResource & Record<string, unknown>;

export interface ToyStack extends TestStack {
  /** The folder that stands for the node. */
  node: string;
  Toy: ToyClass;
}

/** A stack whose resources are toys, by the dynamic door and the real engine. */
export async function openToyStack(): Promise<ToyStack> {
  const node = await mkdtemp(join(tmpdir(), "cloudlet-toy-"));
  const stack = await openStack({ program: () => Promise.resolve({}) });
  const toyFolder = join(stack.directory, "node_modules", "toy");
  await mkdir(toyFolder);
  await build({
    entryPoints: [join(import.meta.dirname, "..", "fakes", "toy.ts")],
    outfile: join(toyFolder, "hooks.js"),
    bundle: true,
    platform: "node",
    format: "cjs",
    external: ["@pulumi/pulumi"],
    define: { "import.meta.dirname": "__dirname" },
  });
  await writeFile(join(toyFolder, "index.js"), classText);
  const { Toy } = createRequire(join(stack.directory, "x"))("toy") as { Toy: ToyClass };
  return {
    ...stack,
    node,
    Toy,
    async close() {
      await stack.close();
      await rm(node, { recursive: true, force: true });
    },
  };
}

// the same shape as the provider objects of the sdk, over the toy's hooks
const classText = `
const pulumi = require("@pulumi/pulumi");
const provider = {
  token: "cloudlet:index:Toy",
  configure() {
    Object.assign(this, require("toy/hooks").hooksOf(this.token));
    return Promise.resolve();
  },
};
exports.Toy = class Toy extends pulumi.dynamic.Resource {
  constructor(name, args, options) {
    super(provider, name, { size: undefined, serial: undefined, ...args }, options, "cloudlet", "Toy");
  }
};
`;
