import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { run, tryRun, type RunResult } from "./run.ts";

const repository = resolve(import.meta.dirname, "../..");
const node = join(repository, "node_modules/.bin/node");
const name = "labcli";

describe("a lab that is left running", () => {
  const shell = (command: string) => run(["/bin/sh", "-c", command], { cwd: repository, timeoutMillis: 300_000 });
  let printed = "";
  /** The command after these words, as printed. */
  const command = (title: string): string => new RegExp(`^${title}: +(.*)$`, "m").exec(printed)?.[1] ?? "";
  const lab = (...args: string[]): Promise<RunResult> =>
    tryRun([node, join(repository, "test/lab/cli.ts"), "--name", name, ...args], { cwd: repository, timeoutMillis: 120_000 });

  beforeAll(async () => {
    printed = await shell(`node_modules/.bin/node test/lab/cli.ts --name ${name} up`);
  });
  afterAll(async () => {
    await lab("down");
    expect(existsSync(`/var/lib/cloudlet-lab/${name}`)).toBe(false);
    expect(existsSync(join(repository, ".lab", name))).toBe(false);
  });

  it("has its hosts up, and says how to log in", async () => {
    expect(printed.match(/^(gw1|gw2|subscriber|core) .* up$/gm)).toHaveLength(4);
    expect(await shell(`${command("log in")} uname -n`)).toBe("gw1\n");
    expect(await shell(`${command("or, for any host")} uname -n`)).toBe("gw1\n");
  });

  it("has a program that runs as printed, and moves as it says", async () => {
    const [up, ask] = [command("run it"), command("see it answer")];
    await shell(up);
    expect(await shell(ask)).toContain('"counter": 1');
    const program = join(repository, command("a program to try"));
    writeFileSync(program, readFileSync(program, "utf8").replace("hypervisor: gw1lxd", "hypervisor: gw2lxd"));
    await shell(up);
    expect(await shell(ask.replace("gw1:", "gw2:"))).toContain('"counter": 2');
    await shell(up.replace(/up$/, "destroy"));
  });

  it("keeps a program that was edited when it is asked for again", async () => {
    expect((await lab("up")).exitCode).toBe(0);
    expect(readFileSync(join(repository, command("a program to try")), "utf8")).toContain("hypervisor: gw2lxd");
  });

  it("says in one line what it does not know", async () => {
    for (const wrong of [["ssh", "gw9"], ["cut", "gw9"], ["pulumi", "sing"], ["dance"]]) {
      const { exitCode, stderr } = await lab(...wrong);
      expect(exitCode).toBe(1);
      expect(stderr.trim()).toMatch(/^.+; .+ \[INVALID\]$/);
    }
  });
});

it.runIf(process.getuid?.() === 0)("is refused in one line to who is not root", async () => {
  const script = `process.getuid = () => 1000; await import(${JSON.stringify(join(repository, "test/lab/cli.ts"))})`;
  const argv = [node, "--input-type=module", "-e", script, "--", "cli", "up", "--name", name];
  const { exitCode, stderr } = await tryRun(argv, { cwd: repository });
  expect(exitCode).toBe(1);
  expect(stderr.trim()).toMatch(/^the lab needs root.*\[UNAUTHORIZED\]$/);
});
