import { execFile } from "node:child_process";
import { cp, mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { z } from "zod";
import { buildImages } from "../../../tools/images/images.ts";
import { engineEnvironment, pulumiPath } from "../../engine.ts";
import { createLab, type Lab } from "../../lab/lab.ts";

const repository = resolve(import.meta.dirname, "../../..");
const drivers = join(import.meta.dirname, "languages");
const minutes = (count: number): number => count * 60_000;

type Command = "preview" | "up" | "destroy";

const doneSchema = z.object({
  counts: z.record(z.string(), z.int()),
  outputs: z.record(z.string(), z.unknown()),
  text: z.string(),
});
type Done = z.infer<typeof doneSchema>;

let folder: string;
let lab: Lab<"gw1" | "subscriber">;
let image: string;
let env: NodeJS.ProcessEnv;

const run = async (program: string, args: string[], cwd = folder): Promise<string> => {
  const { stdout, stderr } = await promisify(execFile)(program, args, { cwd, env, timeout: minutes(6), maxBuffer: 64 * 1024 * 1024 }).catch(
    (error: Error & { stdout?: string; stderr?: string }) => {
      throw new Error(`${error.message}\n${error.stdout ?? ""}${error.stderr ?? ""}`, { cause: error });
    },
  );
  return stdout + stderr;
};
const doneOf = (text: string): Done => doneSchema.parse(JSON.parse(text.split("\n").findLast((line) => line.startsWith("{")) ?? ""));

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-languages-"));
  await mkdir(join(folder, "backend"));
  lab = await createLab({ name: "langs", hosts: [{ name: "gw1", lxd: true }, { name: "subscriber" }] });
  image = (await buildImages()).container;
  env = {
    ...process.env,
    ...engineEnvironment(folder, pulumiPath()),
    // how to log in is said by the operator's environment; the programs name hosts only
    CLOUDLET_CONNECTION: JSON.stringify({ user: "root", privateKey: await readFile(lab.keyPath, "utf8") }),
    CLOUDLET_KNOWN_HOSTS: lab.knownHostsPath,
  };
}, minutes(5));
afterAll(async () => {
  await lab?.close();
  await rm(folder, { recursive: true, force: true });
});

/** A copy of an example with a stack that is set up as the example's page says. */
async function openExample(language: string): Promise<string> {
  const directory = join(folder, language);
  await cp(join(repository, "examples", language), directory, { recursive: true });
  await run("pulumi", ["stack", "init", "dev"], directory);
  for (const [key, value] of Object.entries({ host: lab.hosts.gw1.address, kind: "lxd", image }))
    await run("pulumi", ["config", "set", key, value], directory);
  return directory;
}

/** Commission, a cloudlet that answers, no further changes, and the machine as it was. */
function isRunBy(operate: (command: Command) => Promise<Done>): void {
  it("previews what it will make", { timeout: minutes(5) }, async () => {
    const shown = await operate("preview");
    expect(shown.counts).toEqual({ create: 5 });
    expect(shown.text).not.toMatch(/warning/i);
  });

  it("makes a cloudlet that answers, and has nothing to change afterwards", { timeout: minutes(5) }, async () => {
    const made = await operate("up");
    expect(made, made.text).toMatchObject({ counts: { create: 5 }, outputs: { status: "running" } });
    expect(made.text).not.toMatch(/warning/i);
    expect(made.outputs["endpoint"]).toBe(`${lab.hosts.gw1.address}:8080`);
    const { stdout } = await lab.hosts.subscriber.exec(`curl -s -m 5 http://${lab.hosts.gw1.address}:8080/`);
    expect(stdout).toContain('"counter"');
    expect((await operate("preview")).counts).toEqual({ same: 5 });
  });

  it("leaves nothing behind", { timeout: minutes(5) }, async () => {
    expect((await operate("destroy")).counts).toEqual({ delete: 5 });
    expect(await lab.hosts.gw1.run("ls -A /var/lib/cloudlet 2>/dev/null; true")).toBe("");
  });
}

describe("with the plugin installed from a release's tarball", () => {
  beforeAll(async () => {
    const release = join(folder, "release");
    await run(join(repository, "node_modules/.bin/node"), [join(repository, "tools/release.ts"), release]);
    await run("sha256sum", ["--check", "--strict", "SHA256SUMS"], release);
    const { version } = z.object({ version: z.string() }).parse(JSON.parse(await readFile(join(repository, "package.json"), "utf8")));
    const platform = `${process.platform}-${process.arch === "x64" ? "amd64" : process.arch}`;
    const tarball = `pulumi-resource-cloudlet-v${version}-${platform}.tar.gz`;
    await run("pulumi", ["plugin", "install", "resource", "cloudlet", version, "--file", tarball], release);
  }, minutes(2));

  describe("the example in Python", () => {
    let directory: string;
    let python: string;
    beforeAll(async () => {
      directory = await openExample("python");
      // what it says of its work comes after it
      [python = ""] = (await run(join(repository, "tools/setup/python"), [])).split("\n");
      // a copy, as building leaves files
      await cp(join(repository, "sdk/python"), join(folder, "sdk"), { recursive: true });
      const flags = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"];
      await run(python, ["-m", "pip", "install", ...flags, "--target", join(folder, "site"), join(folder, "sdk")]);
      env = { ...env, PYTHONPATH: join(folder, "site") };
    }, minutes(5));

    isRunBy(async (command) => doneOf(await run(python, [join(drivers, "operate.py"), command, directory])));
  });

  describe("the example in Go", () => {
    let directory: string;
    beforeAll(async () => {
      directory = await openExample("go");
      // with the modules and flags of the engine, which were compiled for it already
      const modules = ["tools/engine", "sdk/go", "examples/go"].map((path) => `use ${join(repository, path)}\n`);
      await writeFile(join(folder, "go.work"), `go 1.25.11\n${modules.join("")}`);
      const overlay = { Replace: { [join(repository, "examples/go/operate_test.go")]: join(drivers, "operate_test.go") } };
      await writeFile(join(folder, "overlay.json"), JSON.stringify(overlay));
      env = { ...env, GOWORK: join(folder, "go.work") };
      const flags = ["-tags", "osusergo,grpcnotrace", "-trimpath", "-vet=off", "-overlay", join(folder, "overlay.json")];
      await run("go", ["test", "-c", ...flags, "-o", join(folder, "operate"), "."], join(repository, "examples/go"));
    }, minutes(7));

    isRunBy(async (command) => doneOf(await run(join(folder, "operate"), [command, directory])));
  });
});

describe("with the plugin of the npm package", () => {
  describe("the example in YAML, by pulumi itself", () => {
    let directory: string;
    beforeAll(async () => {
      directory = await openExample("yaml");
      await mkdir(join(directory, "node_modules"));
      await symlink(repository, join(directory, "node_modules/pulumi-cloudlet"));
    }, minutes(2));

    isRunBy(async (command) => {
      const flags = ["--non-interactive", ...(command === "preview" ? [] : ["--yes", "--skip-preview"])];
      const text = await run("pulumi", [command, ...flags], directory);
      const counts = [...text.matchAll(/^ +[+~-]? *(\d+) (?:to )?(create|created|delete|deleted|unchanged)/gm)];
      const outputs =
        command === "up"
          ? z.record(z.string(), z.unknown()).parse(JSON.parse(await run("pulumi", ["stack", "output", "--json"], directory)))
          : {};
      const word = (told = ""): string => (told === "unchanged" ? "same" : told.replace(/d$/, ""));
      return { text, outputs, counts: Object.fromEntries(counts.map(([, count, told]) => [word(told), Number(count)])) };
    });
  });
});
