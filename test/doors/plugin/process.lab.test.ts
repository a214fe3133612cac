import { spawn, type ChildProcessByStdio } from "node:child_process";
import { once } from "node:events";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { CustomResource } from "@pulumi/pulumi";
import { afterEach, describe, expect, it } from "vitest";
import { openStack } from "../../engine.ts";

class EdgeCluster extends CustomResource {
  constructor(name: string, args: Record<string, unknown>) {
    super("cloudlet:index:EdgeCluster", name, args);
  }
}

const program = join(resolve(import.meta.dirname, "../../.."), "pulumi-resource-cloudlet");
const running: ChildProcessByStdio<Writable, Readable, null>[] = [];
afterEach(() => {
  for (const child of running.splice(0)) child.kill("SIGKILL");
});

async function start(...args: string[]): Promise<{ child: (typeof running)[number]; port: number; ended: Promise<unknown[]> }> {
  const child = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
  running.push(child);
  const ended = once(child, "exit", { signal: AbortSignal.timeout(60_000) });
  ended.catch(() => undefined);
  const [line] = (await once(createInterface(child.stdout), "line", { signal: AbortSignal.timeout(30_000) })) as [string];
  return { child, port: Number(line), ended };
}

describe("the plugin's process", () => {
  it("says its port first, and ends with the engine that started it", async () => {
    const { child, port, ended } = await start("127.0.0.1:1");
    expect(port).toBeGreaterThan(0);
    // the pipe closes when the engine is killed
    child.stdin.end();
    expect(await ended).toEqual([0, null]);
  });

  it.each(["SIGINT", "SIGTERM"] as const)("ends at once by %s, and calls that no failure", async (signal) => {
    const { child, ended } = await start("127.0.0.1:1");
    child.kill(signal);
    expect(await ended).toEqual([0, null]);
  });

  it("that nobody started as a provider serves one run after the other", { timeout: 120_000 }, async () => {
    const { child, port } = await start();
    child.stdin.end();
    const declare = (description: string) => async () => {
      new EdgeCluster("faces", { application: "face-recognition", description });
      return Promise.resolve({});
    };
    const stack = await openStack({ program: declare("first"), env: { PULUMI_DEBUG_PROVIDERS: `cloudlet:${port}` } });
    try {
      const first = await stack.up();
      expect(first, first.text).toMatchObject({ ok: true, counts: { create: 2 } });
      // the engine cancels at the end of each run, which must not reach the next one
      const second = await stack.up(declare("second"));
      expect(second, second.text).toMatchObject({ ok: true, counts: { update: 1 } });
      expect(await stack.destroy()).toMatchObject({ ok: true });
      expect(child.exitCode).toBeNull();
    } finally {
      await stack.close();
    }
  });
});
