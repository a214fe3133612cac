import { existsSync } from "node:fs";
import { readFile, rename, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { output, secret } from "@pulumi/pulumi";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { openToyStack, type DoorName, type ToyArgs, type ToyStack } from "./toyStack.ts";

describe.each<DoorName>(["dynamic", "plugin"])("the %s door, with toys", (door) => {
  let stack: ToyStack;
  beforeAll(async () => {
    stack = await openToyStack(door);
  }, 60_000);
  afterAll(() => stack.close());

  const declare = (toys: Record<string, ToyArgs>) => async () => {
    for (const [name, args] of Object.entries(toys)) new stack.Toy(name, { folder: stack.node, name, ...args });
    return Promise.resolve({});
  };

  const full = { content: "hello", tags: ["b", "a"], ports: [{ port: 80 }, { port: 443, hostPort: 8443 }] };

  it("creates, then changes nothing however often up and refresh run", { timeout: 60_000 }, async () => {
    const first = await stack.up(declare({ a: full }));
    expect(first).toMatchObject({ ok: true, counts: { create: 2 } });
    expect(first.status.join("\n")).toContain("writing a");
    const second = await stack.up(declare({ a: { ...full, tags: ["a", "b"], ports: [...full.ports].reverse(), breaks: false } }));
    expect(second).toMatchObject({ ok: true, counts: { same: 2 } });
    expect(await stack.refresh()).toMatchObject({ ok: true, counts: { same: 2 } });
    expect(await stack.preview()).toMatchObject({ ok: true, counts: { same: 2 } });
  });

  it("shows an update by property and a replacement with its reason", { timeout: 60_000 }, async () => {
    const update = await stack.preview(declare({ a: { ...full, ports: [{ port: 80 }, { port: 443, hostPort: 9443 }] } }));
    expect(update.counts).toMatchObject({ update: 1 });
    expect(update.text).toContain("9443");
    const elsewhere = await stack.preview(declare({ a: { ...full, name: "other" } }));
    expect(elsewhere.counts).toMatchObject({ replace: 1 });
    expect(elsewhere.steps.map(({ op }) => op)).toContain("replace");
  });

  it("shows drift on refresh and repairs it", { timeout: 60_000 }, async () => {
    const file = join(stack.node, "a");
    const stored = JSON.parse(await readFile(file, "utf8")) as object;
    await writeFile(file, JSON.stringify({ ...stored, content: "tampered" }));
    expect((await stack.up(declare({ a: full }))).counts).toMatchObject({ same: 2 });
    expect((await stack.refresh()).counts).toMatchObject({ update: 1 });
    const repair = await stack.preview();
    expect(repair.counts).toMatchObject({ update: 1 });
    expect(repair.text).toContain("tampered");
    await stack.up();
    expect(await readFile(file, "utf8")).toContain("hello");
  });

  it("keeps the state of a node that does not answer, and drops what the node says is gone", { timeout: 60_000 }, async () => {
    await rename(stack.node, `${stack.node}-away`);
    const silent = await stack.refresh();
    expect(silent.ok).toBe(false);
    expect(silent.text).toContain("does not answer");
    expect(await stack.state()).toHaveLength(1);
    await rename(`${stack.node}-away`, stack.node);
    await rm(join(stack.node, "a"));
    expect((await stack.refresh()).counts).toMatchObject({ delete: 1 });
    expect(await stack.state()).toHaveLength(0);
  });

  it("says what is wrong with an input by its path, and never prints its value", { timeout: 60_000 }, async () => {
    const wrong = { ...full, ports: [{ port: 80, hostport: "hunter2" }, { port: 70_000 }], login: { user: 5, password: "hunter2" } };
    const refused = await stack.preview(declare({ a: wrong }));
    expect(refused.ok).toBe(false);
    expect(refused.text).toContain('ports[0].hostport: is not a property here (did you mean "hostPort"?)');
    expect(refused.text).toContain("ports[1].port: must be at most 65535");
    expect(refused.text).toContain("login.user: must be text, and is a number");
    expect(refused.text).not.toContain("hunter2");
    expect((await stack.preview(declare({ a: { content: "forbidden" } }))).text).toContain("content: is forbidden; choose another");
  });

  it("knows in check what the same run has declared before", { timeout: 60_000 }, async () => {
    const clash = await stack.preview(declare({ a: { content: "unique" }, b: { content: "unique" } }));
    expect(clash.text).toMatch(/has what . has; change one/);
  });

  it("previews with unknown inputs, and keeps nested secrets encrypted", { timeout: 60_000 }, async () => {
    const program = async () => {
      const a = new stack.Toy("a", { folder: stack.node, name: "a", content: "first", login: { password: secret("hunter2") } });
      const serial = a["serial"] as string;
      new stack.Toy("b", { folder: stack.node, name: "b", content: serial, tags: [serial], ports: [{ port: output(a["size"]) }] });
      return Promise.resolve({});
    };
    expect(await stack.preview(program)).toMatchObject({ ok: true, counts: { create: 2 } });
    expect((await stack.up(program)).text).not.toContain("hunter2");
    expect(await stack.stateText()).not.toContain("hunter2");
    expect(await readFile(join(stack.node, "b"), "utf8")).toContain("serial of a");
    await stack.refresh();
    expect(await stack.stateText()).not.toContain("hunter2");
    expect((await stack.preview()).counts).toMatchObject({ same: 3 });
  });

  it("keeps what a failed create left behind, and takes it up or deletes it in the next run", { timeout: 60_000 }, async () => {
    const broken = await stack.up(declare({ c: { content: "half", breaks: true } }));
    expect(broken.ok).toBe(false);
    expect(broken.text).toContain("writing c broke");
    const kept = (await stack.state()).find(({ urn }) => urn.endsWith("::c"));
    expect(kept?.id).toBe("c");
    // without it the dynamic door could neither read nor delete later
    expect(Object.keys(kept?.outputs ?? {}).includes("__provider")).toBe(door === "dynamic");
    expect(await stack.up(declare({ c: { content: "half", breaks: false } }))).toMatchObject({ ok: true, counts: { update: 1 } });
    await stack.up(declare({ c: { content: "half", breaks: true } }));
    expect(await stack.destroy()).toMatchObject({ ok: true });
    expect(existsSync(join(stack.node, "c"))).toBe(false);
  });

  it("shows a warning under Diagnostics", { timeout: 60_000 }, async () => {
    expect((await stack.up(declare({ w: { content: "warn" } }))).diagnostics).toContain("look at this");
    await stack.destroy();
  });
});
