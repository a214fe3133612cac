import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { CustomResource } from "@pulumi/pulumi";
import { build } from "esbuild";
import { openStack, type TestStack } from "../engine.ts";

export type ToyArgs = Record<string, unknown>;
type ToyClass = new (name: string, args: ToyArgs, options?: object) => CustomResource & Record<string, unknown>;
export type DoorName = "dynamic" | "plugin";

export interface ToyStack extends TestStack {
  /** The folder that stands for the node. */
  node: string;
  Toy: ToyClass;
}

/** A stack whose resources are toys, by one of the doors and the real engine. */
export async function openToyStack(door: DoorName): Promise<ToyStack> {
  const node = await mkdtemp(join(tmpdir(), "cloudlet-toy-"));
  const plugin = `${node}-plugin`;
  const stack = await openStack({ program: () => Promise.resolve({}), plugin });
  const toyFolder = join(stack.directory, "node_modules", "toy");
  await mkdir(toyFolder);
  if (door === "dynamic") await bundle("toyHooks.ts", join(toyFolder, "hooks.js"));
  await mkdir(plugin);
  if (door === "plugin") {
    await bundle("toyPlugin.ts", join(plugin, "plugin.cjs"));
    const start = join(plugin, "pulumi-resource-cloudlet");
    await writeFile(start, '#!/bin/sh\nexec node "$(dirname "$0")/plugin.cjs" "$@"\n');
    await chmod(start, 0o755);
  }
  await writeFile(join(toyFolder, "index.js"), classTexts[door]);
  const { Toy } = createRequire(join(stack.directory, "x"))("toy") as { Toy: ToyClass };
  return {
    ...stack,
    node,
    Toy,
    async close() {
      await stack.close();
      for (const folder of [node, plugin]) await rm(folder, { recursive: true, force: true });
    },
  };
}

async function bundle(source: string, target: string): Promise<void> {
  await build({
    entryPoints: [join(import.meta.dirname, "..", "fakes", source)],
    outfile: target,
    bundle: true,
    platform: "node",
    format: "cjs",
    external: source === "toyHooks.ts" ? ["@pulumi/pulumi"] : [],
    define: { "import.meta.dirname": "__dirname" },
  });
}

// the same shapes as in the sdk, over the toy
const classTexts: Record<DoorName, string> = {
  dynamic: `
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
`,
  plugin: `
const pulumi = require("@pulumi/pulumi");
exports.Toy = class Toy extends pulumi.CustomResource {
  constructor(name, args, options) {
    super("cloudlet:index:Toy", name, { size: undefined, serial: undefined, ...args }, options);
  }
};
`,
};
