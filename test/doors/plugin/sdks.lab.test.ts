import { execFile } from "node:child_process";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { promisify } from "node:util";
import { expect, it } from "vitest";

const run = promisify(execFile);
const repository = resolve(import.meta.dirname, "../../..");

it("the SDKs for Python and Go are what Pulumi's generators make of schema.json", { timeout: 300_000 }, async () => {
  const folder = await mkdtemp(join(tmpdir(), "cloudlet-sdks-"));
  try {
    await run(join(repository, "tools/engine/generate"), [folder], { timeout: 280_000 });
    // written by hand, or left by whoever uses an SDK
    const others = ["go.mod", "go.sum", "__pycache__", "*.egg-info", "build"].map((name) => `--exclude=${name}`);
    for (const language of ["python", "go"]) {
      const { stdout } = await run("diff", ["-r", "-N", ...others, join(repository, "sdk", language), join(folder, language)]).catch(
        (error: { stdout: string }) => error,
      );
      expect(stdout, "run `make sdks` and commit what it writes").toBe("");
    }
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
});
