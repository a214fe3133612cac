import { mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { openProgram } from "../../../provider/hypervisors/qemu/program.ts";

let directory = "";

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "cloudlet-qemu-"));
  vi.stubEnv("PATH", `${directory}:${process.env["PATH"] ?? ""}`);
});

afterEach(async () => {
  vi.unstubAllEnvs();
  await rm(directory, { recursive: true });
});

/** A fake QEMU that says its version, and writes down each question. */
async function installFake(version: string): Promise<void> {
  const file = join(directory, "qemu-system-x86_64");
  const answers = `#!/bin/sh\necho "$1" >>${directory}/asked\necho 'QEMU emulator version ${version}'\necho 'pc  alias (alias of pc-7)'\necho 'pc-7   Standard PC'\n`;
  await writeFile(`${file}.new`, answers, { mode: 0o755 });
  await rename(`${file}.new`, file);
}

const questions = async (): Promise<number> => (await readFile(join(directory, "asked"), "utf8")).trim().split("\n").length;

it("QEMU is asked once for what it is, and again after an upgrade", async () => {
  await installFake("7.2.1");
  const program = openProgram();
  expect(await Promise.all([program(), program()])).toEqual(Array(2).fill({ version: "7.2.1", machineTypes: ["pc-7"] }));
  expect(await program()).toEqual({ version: "7.2.1", machineTypes: ["pc-7"] });
  expect(await questions()).toBe(2);
  await installFake("8.0.0");
  expect((await program()).version).toBe("8.0.0");
  expect(await questions()).toBe(4);
});

it("a QEMU that could not be asked is asked again", async () => {
  await installFake("none");
  const program = openProgram();
  await expect(program()).rejects.toThrow("tells no version");
  await expect(program()).rejects.toThrow("tells no version");
  expect(await questions()).toBe(4);
});
