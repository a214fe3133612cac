import { execFile } from "node:child_process";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { afterEach, describe, expect, it } from "vitest";

const example = resolve(import.meta.dirname, "../examples/pull-request-preview");

const made: string[] = [];
afterEach(async () => {
  for (const directory of made.splice(0)) await rm(directory, { recursive: true, force: true });
});

/** The script's preview with a fake `pulumi` that prints this many lines and ends with this code. */
async function previewed({ lines, code }: { lines: number; code: number }): Promise<{ code: number; log: string; comment: string }> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-preview-"));
  made.push(directory);
  await cp(join(example, "ci.sh"), join(directory, "ci.sh"));
  const fake = `#!/bin/sh\nseq -f '  ~ line %.0f: "äöü" => "…"' ${lines}\necho 'Resources: 1 to update'\nexit ${code}\n`;
  await writeFile(join(directory, "pulumi"), fake, { mode: 0o755 });
  const env = { ...process.env, PATH: `${directory}:${process.env["PATH"] ?? ""}`, PULUMI_STACK: "dev" };
  const ended = await new Promise<{ code: number; log: string }>((settle) => {
    const child = execFile(join(directory, "ci.sh"), ["preview"], { env, timeout: 15_000, maxBuffer: 1e8 }, (_error, log) =>
      settle({ code: child.exitCode ?? -1, log }),
    );
  });
  return { ...ended, comment: await readFile(join(directory, "comment.md"), "utf8") };
}

describe("a preview as a comment", () => {
  it("is all of a short one", async () => {
    const { code, comment } = await previewed({ lines: 2, code: 0 });
    expect(code).toBe(0);
    const text = '  ~ line 1: "äöü" => "…"\n  ~ line 2: "äöü" => "…"\nResources: 1 to update\n';
    expect(comment).toBe(`### Preview of \`dev\`\n\n\`\`\`\`\`\`\n${text}\`\`\`\`\`\`\n`);
  });

  it("is the begin and the end of a long one, in whole lines, and never longer than GitHub takes", async () => {
    const { code, log, comment } = await previewed({ lines: 20_000, code: 255 });
    expect(code).toBe(255);
    expect(comment.length).toBeLessThan(65_536);
    expect(comment).toMatch(/^### Preview of `dev` failed\n\n`{6}\n {2}~ line 1: /);
    expect(comment).toContain("\n... left out here; the log of the job has all 20001 lines ...\n");
    expect(comment).toMatch(/\n {2}~ line 20000: "äöü" => "…"\nResources: 1 to update\n`{6}\n$/);
    const told = comment.split("\n").filter((line) => line.startsWith("  "));
    expect(told.filter((line) => !/^ {2}~ line \d+: "äöü" => "…"$/.test(line))).toEqual([]);
    expect(log.split("\n")).toHaveLength(20_002);
  });
});

it("the workflow runs the script's commands, and only jobs that no pull request starts have the key", async () => {
  const workflow = await readFile(join(example, ".github/workflows/gateways.yml"), "utf8");
  const [, ...jobs] = (workflow.split("\njobs:\n")[1] ?? "").split(/^ {2}(?=\w+:$)/m);
  expect(jobs.map((job) => /^\w+/.exec(job)?.[0])).toEqual(["preview", "drift", "deploy"]);
  for (const job of jobs) {
    const [name = ""] = /^\w+/.exec(job) ?? [];
    expect(job).toContain(`- run: ./ci.sh ${name}\n`);
    expect(job.includes("SSH_PRIVATE_KEY"), name).toBe(name !== "preview");
    expect(job.includes("'pull_request'"), name).toBe(name === "preview");
  }
});
