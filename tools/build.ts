import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build, type BuildOptions, type Plugin } from "esbuild";

const root = join(import.meta.dirname, "..");
const { version } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as { version: string };

/** The classes get Pulumi's SDK by a detour that also works in a linked checkout. */
const linkable: Plugin = {
  name: "linkable",
  setup({ onResolve }) {
    const detour = join(root, "sdk/programsPulumi.cjs");
    onResolve({ filter: /^@pulumi\/pulumi$/ }, ({ importer }) => (importer === detour ? { external: true } : { path: detour }));
  },
};

/** What the package consists of. CommonJS, as Pulumi loads a dynamic provider's code by `require`. */
const entries: { source: string; output: string; options: BuildOptions }[] = [
  ...(["plugin", "dynamic"] as const).map((door) => ({
    source: `sdk/${door}/index.ts`,
    output: door === "plugin" ? "index.js" : "dynamic.js",
    options: { packages: "external" as const, target: "node22", plugins: [linkable] },
  })),
  { source: "provider/doors/dynamic/hooks.ts", output: "hooks.js", options: { packages: "external", target: "node22" } },
  // a process of whatever pulls images: found beside its caller
  { source: "provider/local/flattenProcess.ts", output: "flattenProcess.js", options: { target: "node22" } },
  // `npx cloudlet`
  {
    source: "provider/cli/main.ts",
    output: "cli.js",
    options: { packages: "external", target: "node22", banner: { js: "#!/usr/bin/env node" } },
  },
  // what the engine starts, which runs the next
  { source: "provider/doors/plugin/start.ts", output: "start.js", options: { target: "node22" } },
  // the plugin: one file with everything in it, Pulumi's protocol included
  {
    source: "provider/doors/plugin/main.ts",
    output: "plugin.js",
    // ssh2 does without its native parts
    options: {
      target: "node22",
      // the engine waits while it is read; names stay, for stacks
      minifyWhitespace: true,
      minifySyntax: true,
      // what starts it reads it as such
      charset: "ascii",
      external: ["*.node"],
      define: { packageVersion: JSON.stringify(version), "import.meta.dirname": "__dirname" },
    },
  },
  // one file with everything in it, for the Node of the node's distribution
  { source: "provider/agent/main.ts", output: "agent.js", options: { target: "node18" } },
];

const cache = join(root, "node_modules", ".cache");
mkdirSync(cache, { recursive: true });
const work = mkdtempSync(join(cache, "build-"));
try {
  const made = join(work, "dist");
  await bundle(made);
  declare(made);
  replace(join(root, "dist"), made);
} finally {
  rmSync(work, { recursive: true, force: true });
}

async function bundle(directory: string): Promise<void> {
  mkdirSync(directory);
  writeFileSync(join(directory, "package.json"), `${JSON.stringify({ type: "commonjs" })}\n`);
  for (const { source, output, options } of entries) {
    await build({
      absWorkingDir: root,
      entryPoints: [source],
      outfile: join(directory, output),
      bundle: true,
      platform: "node",
      format: "cjs",
      minify: false,
      logLevel: "warning",
      // sources ask for their own folder by this name; CommonJS calls it __dirname
      define: { "import.meta.dirname": "__dirname" },
      ...options,
    });
  }
}

function declare(directory: string): void {
  const options = ["--noEmit", "false", "--emitDeclarationOnly", "--declaration", "--rootDir", root, "--outDir", join(directory, "types")];
  const tsc = spawnSync(join(root, "node_modules/.bin/tsc"), ["-p", "tools/tsconfig.build.json", ...options], {
    cwd: root,
    stdio: "inherit",
  });
  if (tsc.status !== 0) throw new Error("build: the declarations have errors");
  // the classes' types stand alone; what is behind the hooks is nobody's interface
  rmSync(join(directory, "types", "provider"), { recursive: true, force: true });
}

/** In two renames, so that whoever reads `dist` meanwhile finds one build or the other. */
function replace(target: string, made: string): void {
  if (existsSync(target)) renameSync(target, join(work, "before"));
  renameSync(made, target);
}
