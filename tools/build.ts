import { existsSync, mkdirSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { spawnSync } from "node:child_process";
import { build, type BuildOptions } from "esbuild";

const root = join(import.meta.dirname, "..");
const dist = join(root, "dist");

/** What the package consists of. CommonJS, as Pulumi loads a dynamic provider's code by `require`. */
const entries: { source: string; output: string; options: BuildOptions }[] = [
  { source: "sdk/dynamic/index.ts", output: "dynamic.js", options: { packages: "external", target: "node22" } },
  { source: "provider/doors/dynamic/hooks.ts", output: "hooks.js", options: { packages: "external", target: "node22" } },
  // one file with everything in it, for the Node of the node's distribution
  { source: "provider/agent/main.ts", output: "agent.js", options: { target: "node18" } },
];

const missing = entries.filter((it) => !existsSync(join(root, it.source)));
rmSync(dist, { recursive: true, force: true });
mkdirSync(dist, { recursive: true });
writeFileSync(join(dist, "package.json"), `${JSON.stringify({ type: "commonjs" })}\n`);
for (const { source, output, options } of entries.filter((it) => !missing.includes(it))) {
  await build({
    absWorkingDir: root,
    entryPoints: [source],
    outfile: join(dist, output),
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
const declarations = ["--noEmit", "false", "--emitDeclarationOnly", "--declaration", "--outDir", "dist/types", "--rootDir", "."];
const tsc = spawnSync("node_modules/.bin/tsc", ["-p", "tools/tsconfig.build.json", ...declarations], { cwd: root, stdio: "inherit" });
if (missing.length > 0) {
  console.error(`build: ${missing.map((it) => it.source).join(", ")} missing`);
  process.exitCode = 1;
}
if (tsc.status !== 0) process.exitCode = 1;
