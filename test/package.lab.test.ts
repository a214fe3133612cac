import { execFile } from "node:child_process";
import { copyFile, cp, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { buildImages } from "../tools/images/images.ts";
import { cacheDirectory } from "../tools/setup/cache.ts";
import { engineEnvironment, pulumiPath } from "./engine.ts";
import { keyService, keyServiceEnvironment } from "./fakes/keyService.ts";
import { createLab, type Lab } from "./lab/lab.ts";
import { readmeProgram } from "./readme.ts";

const run = promisify(execFile);
const repository = resolve(import.meta.dirname, "..");
const bin = join(repository, "node_modules", ".bin");
const minutes = (count: number): number => count * 60_000;

let folder: string;
let tarball: string;
let packed: string[];

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-package-"));
  // npm builds first, by the package's own prepack script
  const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", folder], options(repository, minutes(2)));
  // what the script prints comes before the list
  const [made] = packSchema.parse(JSON.parse(stdout.slice(stdout.search(/^\[$/m))));
  if (made === undefined) throw new Error("npm packed nothing");
  tarball = join(folder, made.filename);
  packed = made.files.map(({ path }) => path);
}, minutes(3));
afterAll(() => rm(folder, { recursive: true, force: true }));

const packSchema = z.array(z.object({ filename: z.string(), files: z.array(z.object({ path: z.string() })) }));

it("the package holds what is built, the documentation and nothing else", () => {
  expect(packed).toEqual(expect.arrayContaining(["LICENSE", "README.md", "CHANGELOG.md", "schema.json", "docs/design.md"]));
  expect(packed).toEqual(
    expect.arrayContaining([
      "dist/agent.js",
      "dist/cli.js",
      "dist/hooks.js",
      "dist/flattenProcess.js",
      "dist/plugin.js",
      "dist/start.js",
      "pulumi-resource-cloudlet",
      "dist/dynamic.js",
      "dist/index.js",
      "dist/types/sdk/dynamic/index.d.ts",
    ]),
  );
  const outside =
    /^(dist\/(agent|cli|hooks|dynamic|index|flattenProcess|plugin|start)\.js|dist\/package\.json|dist\/types\/sdk\/(\w+\/)?\w+\.d\.ts|docs\/.*\.md|docs\/benchmarks\/\w+\.(svg|json))$/;
  const plain = ["LICENSE", "README.md", "CHANGELOG.md", "schema.json", "package.json", "pulumi-resource-cloudlet", "PulumiPlugin.yaml"];
  expect(packed.filter((path) => !plain.includes(path) && !outside.test(path))).toEqual([]);
});

/** How the package comes into somebody else's project. */
const layouts: Record<string, (project: string) => Promise<void>> = {
  async npm(project) {
    const flags = ["--no-audit", "--no-fund", "--prefer-offline", "--loglevel=error"];
    await run("npm", ["install", ...flags, tarball, sdk], options(project, minutes(4)));
  },
  async pnpm(project) {
    const store = join(cacheDirectory(), "pnpm");
    await run(join(bin, "pnpm"), ["add", "--prefer-offline", "--store-dir", store, tarball, sdk], options(project, minutes(4)));
  },
  // as `npm link` leaves it: the checkout by a symbolic link, with a second copy of Pulumi's SDK beside it
  async link(project) {
    await mkdir(join(project, "node_modules"));
    await cp(join(folder, "npm", "node_modules"), join(project, "node_modules"), { recursive: true, verbatimSymlinks: true });
    await rm(join(project, "node_modules", "pulumi-cloudlet"), { recursive: true });
    await symlink(repository, join(project, "node_modules", "pulumi-cloudlet"));
  },
};

const sdkVersion = z
  .object({ version: z.string() })
  .parse(createRequire(import.meta.url)(join(repository, "node_modules/@pulumi/pulumi/package.json"))).version;
const sdk = `@pulumi/pulumi@${sdkVersion}`;

const forms = {
  esm: { type: "module", runner: "run.mjs" },
  cjs: { type: "commonjs", runner: "run.cjs" },
} as const;
type Form = keyof typeof forms;

/** The text of the provider as each run stored it: it must not depend on how the package was installed. */
const texts = new Set<string>();

describe.each(Object.keys(layouts))("installed in an empty project by %s", (layout) => {
  const project = (): string => join(folder, layout);

  beforeAll(async () => {
    await mkdir(project());
    await writeFile(join(project(), "package.json"), JSON.stringify({ name: "infrastructure", private: true }));
    await layouts[layout]?.(project());
  }, minutes(5));

  it("the hooks that Pulumi stores a reference to are found from the program's folder", () => {
    const found = createRequire(join(project(), "index.js")).resolve("pulumi-cloudlet/hooks");
    expect(found).toMatch(/dist\/hooks\.js$/);
  });

  it.each<Form>(["esm", "cjs"])("the README's program compiles as %s and previews", { timeout: minutes(3) }, async (form) => {
    const program = join(project(), form);
    await writeProgram(program, form);
    await run(join(bin, "tsc"), ["-p", program], options(program, minutes(1))).catch(withOutput);
    const answer = await perform(program, form);
    expect(answer.preview).toEqual({ create: 7 });
    expect(answer.up).toEqual({ create: 2 });
    texts.add(answer.provider);
    expect(texts.size).toBe(1);
  });

  it("the README's program compiles with the settings of older projects", { timeout: minutes(1) }, async () => {
    const program = join(project(), "older");
    await writeProgram(program, "cjs");
    const older = ["--module", "commonjs", "--moduleResolution", "node10", "--noEmit"];
    await run(join(bin, "tsc"), ["-p", program, ...older], options(program, minutes(1))).catch(withOutput);
  });
});

describe("the README's program on two bare machines that the ssh configuration names", () => {
  let lab: Lab<"gw1" | "gw2" | "subscriber">;
  let program: string;
  let home: string;

  beforeAll(async () => {
    const images = await buildImages();
    const bare = (["gw1", "gw2"] as const).map((name) => ({ name, bare: true }));
    lab = await createLab({ name: "readme", hosts: [...bare, { name: "subscriber" }] });
    program = join(folder, "npm", "gateways");
    await writeProgram(program, "esm");
    await writeFile(join(program, "run.mjs"), operate);
    await copyFile(images.vm, join(program, "faces.qcow2"));
    home = join(folder, "home");
    await mkdir(join(home, ".ssh"), { recursive: true });
    await copyFile(lab.knownHostsPath, join(home, ".ssh", "known_hosts"));
    const named = (["gw1", "gw2"] as const).map((name) => `Host ${name}.example.net\n  HostName ${lab.hosts[name].address}\n`);
    await writeFile(join(home, ".ssh", "config"), `${named.join("")}Host *\n  IdentityFile ${lab.keyPath}\n  IdentitiesOnly yes\n`);
  }, minutes(4));
  afterAll(() => lab?.close());

  const pulumi = async (command: string, hypervisor: "kvm1" | "kvm2"): Promise<z.infer<typeof operatedSchema>> => {
    await writeFile(join(program, "index.ts"), readmeProgram().replace("hypervisor: kvm1,", `hypervisor: ${hypervisor},`));
    await run(join(bin, "tsc"), ["-p", program], options(program, minutes(1))).catch(withOutput);
    const env = { ...(await environment(program)), HOME: home };
    const { stdout } = await run(join(bin, "node"), ["run.mjs", command], { cwd: program, env, timeout: minutes(6) }).catch(withOutput);
    return operatedSchema.parse(JSON.parse(stdout.trim().split("\n").at(-1) ?? ""));
  };
  const visit = async (gateway: "gw1" | "gw2"): Promise<number> => {
    const { stdout } = await lab.hosts.subscriber.exec(`curl -s -m 3 http://${lab.hosts[gateway].address}:8080/`);
    return Number(/"counter": *(\d+)/.exec(stdout)?.[1] ?? 0);
  };
  const guests = (gateway: "gw1" | "gw2") =>
    lab.hosts[gateway].run("for p in /proc/[0-9]*; do readlink $p/exe 2>/dev/null; done | grep -c qemu-system; true");
  let last = 0;

  it("up commissions both machines, and the application answers", { timeout: minutes(7) }, async () => {
    const made = await pulumi("up", "kvm1");
    expect(made.counts).toEqual({ create: 7 });
    expect(made.outputs).toMatchObject({ endpoint: "gw1.example.net:8080" });
    last = await visit("gw1");
    expect(last).toBeGreaterThan(0);
  });

  it("kvm2 in place of kvm1 is previewed as an update in place, and up moves the cloudlet", { timeout: minutes(7) }, async () => {
    const shown = await pulumi("preview", "kvm2");
    expect(shown.counts).toEqual({ same: 6, update: 1 });
    expect(shown.text).toMatch(/~ hypervisor *: "gw1\/kvm" => "gw2\/kvm"/);
    const moved = await pulumi("up", "kvm2");
    expect(moved.counts).toEqual({ same: 6, update: 1 });
    expect(moved.outputs).toMatchObject({ endpoint: "gw2.example.net:8080", lastMove: { from: "gw1", to: "gw2", route: "direct" } });
    const there = await visit("gw2");
    expect(there).toBeGreaterThan(last);
    expect(await visit("gw1"), "passed on").toBe(there + 1);
    expect([await guests("gw1"), await guests("gw2")].map(Number)).toEqual([0, 1]);
  });

  it("destroy leaves neither cloudlet nor agent nor packages", { timeout: minutes(7) }, async () => {
    await pulumi("destroy", "kvm2");
    for (const host of [lab.hosts.gw1, lab.hosts.gw2]) {
      expect(await host.run("ls -A /var/lib/cloudlet; command -v nft qemu-system-x86_64; ls /etc/init.d | grep cloudlet; true")).toBe("");
    }
  });
});

async function writeProgram(program: string, form: Form): Promise<void> {
  const { type, runner } = forms[form];
  await mkdir(join(program, "backend"), { recursive: true });
  const compilerOptions = { target: "es2022", lib: ["es2023"], strict: true, skipLibCheck: true, types: [], module: "nodenext" };
  const files = {
    "package.json": JSON.stringify({ name: "program", private: true, type }),
    "tsconfig.json": JSON.stringify({ compilerOptions, files: ["index.ts"] }),
    "index.ts": readmeProgram(),
    "faces.qcow2": "an image that a preview only takes the digest of",
    [runner]: `${heads[runner]}\n${body}`,
  };
  for (const [name, text] of Object.entries(files)) await writeFile(join(program, name), text);
}

const heads = {
  "run.mjs": `
import { LocalWorkspace, PulumiCommand } from "@pulumi/pulumi/automation/index.js";
import { EdgeCluster } from "pulumi-cloudlet/dynamic";
const readme = () => import("./index.js");`,
  "run.cjs": `
const { LocalWorkspace, PulumiCommand } = require("@pulumi/pulumi/automation");
const { EdgeCluster } = require("pulumi-cloudlet/dynamic");
const readme = async () => require("./index.js");`,
};

const body = `
const cluster = async () => { new EdgeCluster("faces", { application: "face-recognition" }); return {}; };
const open = async (projectName, program) => LocalWorkspace.createOrSelectStack({ stackName: "dev", projectName, program }, {
  projectSettings: { name: projectName, runtime: "nodejs", main: process.cwd() },
  workDir: process.cwd(),
  pulumiCommand: await PulumiCommand.get({ root: process.env.ENGINE_ROOT }),
  secretsProvider: "${keyService}",
});
const main = async () => {
  const shown = await open("shown", async () => { const { endpoint, lastMove } = await readme(); return { endpoint, lastMove }; });
  const { changeSummary } = await shown.preview();
  const made = await open("made", cluster);
  const { summary } = await made.up();
  const { deployment } = await made.exportStack();
  const provider = deployment.resources.find(({ type }) => type.endsWith("EdgeCluster")).outputs.__provider;
  await made.destroy();
  console.log(JSON.stringify({ preview: changeSummary, up: summary.resourceChanges, provider }));
};
main();
`;

const operate = `
import { LocalWorkspace, PulumiCommand } from "@pulumi/pulumi/automation/index.js";
const program = async () => { const { endpoint, lastMove } = await import("./index.js"); return { endpoint, lastMove }; };
const stack = await LocalWorkspace.createOrSelectStack({ stackName: "dev", projectName: "faces", program }, {
  projectSettings: { name: "faces", runtime: "nodejs", main: process.cwd() },
  workDir: process.cwd(),
  pulumiCommand: await PulumiCommand.get({ root: process.env.ENGINE_ROOT }),
  secretsProvider: "${keyService}",
});
const command = process.argv[2];
// an error that is only thrown here may be swallowed by the handlers of an inline program
const done = await stack[command]({ diff: command === "preview" }).catch((error) => {
  console.log(error.message);
  process.exit(1);
});
const outputs = Object.fromEntries(Object.entries(done.outputs ?? {}).map(([key, { value }]) => [key, value]));
console.log(JSON.stringify({ counts: done.changeSummary ?? done.summary.resourceChanges, outputs, text: done.stdout }));
`;

const operatedSchema = z.object({
  counts: z.record(z.string(), z.int()),
  outputs: z.record(z.string(), z.unknown()),
  text: z.string(),
});

const answerSchema = z.object({ preview: z.record(z.string(), z.int()), up: z.record(z.string(), z.int()), provider: z.string() });

async function perform(program: string, form: Form): Promise<z.infer<typeof answerSchema>> {
  const env = await environment(program);
  const { stdout } = await run(join(bin, "node"), [forms[form].runner], { cwd: program, env, timeout: minutes(2) }).catch(withOutput);
  return answerSchema.parse(JSON.parse(stdout.trim().split("\n").at(-1) ?? ""));
}

async function environment(program: string): Promise<NodeJS.ProcessEnv> {
  const keys = await keyServiceEnvironment();
  return { ...process.env, ...engineEnvironment(program), ...keys, ENGINE_ROOT: dirname(dirname(pulumiPath())) };
}

// what a child process printed is the reason of its failure
function withOutput(error: Error & { stdout?: string }): never {
  throw new Error(`${error.message}\n${error.stdout ?? ""}`, { cause: error });
}

/** For a child process that may not see what an outer \`npm run\` has put into the environment. */
function options(cwd: string, timeout: number): { cwd: string; timeout: number; env: NodeJS.ProcessEnv; maxBuffer: number } {
  const outer = Object.entries(process.env).filter(([name]) => !/^npm_(?!config_registry)/i.test(name));
  return { cwd, timeout, env: Object.fromEntries(outer), maxBuffer: 64 * 1024 * 1024 };
}
