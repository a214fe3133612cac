import { existsSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { secret } from "@pulumi/pulumi";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { openToyStack, type ToyArgs, type ToyStack } from "../toyStack.ts";

/** What Pulumi's protocol has and its dynamic resources lack, with toys and the real engine. */
let stack: ToyStack;
beforeAll(async () => {
  stack = await openToyStack("plugin");
}, 120_000);
afterAll(() => stack.close());

const declare =
  (args: ToyArgs, options: object = {}) =>
  async () => {
    new stack.Toy("a", { folder: stack.node, ...args }, options);
    return Promise.resolve({});
  };

const full = {
  content: "hello",
  ports: [{ port: 80 }, { port: 443, hostPort: 8443 }],
  login: { user: "root", password: secret("hunter2") },
};

it("takes the Pulumi name where none is given, and is found without a warning", async () => {
  const made = await stack.up(declare(full));
  expect(made, made.text).toMatchObject({ ok: true, counts: { create: 2 } });
  expect((await stack.state())[0]?.id).toBe("a");
  expect(made.text).not.toMatch(/warning|\$PATH/i);
  expect(await stack.stateText()).not.toContain("hunter2");
});

describe("where the project says how to name", () => {
  const settings = (): string => join(stack.directory, "Pulumi.dev.yaml");
  let before: string;
  beforeAll(async () => {
    before = await readFile(settings(), "utf8");
    expect(before).not.toContain("config:");
  });
  afterEach(() => writeFile(settings(), before));
  const configure = (autonaming: string): Promise<void> =>
    writeFile(settings(), `${before}\nconfig:\n  pulumi:autonaming:\n    ${autonaming}\n`);

  it.each([
    ["pattern: ${name}edge", "bedge"],
    ["mode: verbatim", "b"],
  ])("%s: what is new has that name, and what is there keeps its own", async (autonaming, name) => {
    await configure(autonaming);
    const there = await stack.preview(declare(full));
    expect(there, there.text).toMatchObject({ ok: true, counts: { same: 2 } });
    const made = await stack.preview(async () => {
      new stack.Toy("a", { folder: stack.node, ...full });
      new stack.Toy("b", { folder: stack.node });
      return Promise.resolve({});
    });
    expect(made, made.text).toMatchObject({ ok: true, counts: { same: 2, create: 1 } });
    expect(made.text).toMatch(new RegExp(`name +: "${name}"`));
  });

  it("mode: disabled: a name must be given", async () => {
    await configure("mode: disabled");
    expect((await stack.preview(declare(full))).text).toMatch(/name: is missing; set it/);
    expect(await stack.preview(declare({ ...full, name: "a" }))).toMatchObject({ ok: true, counts: { same: 2 } });
  });
});

it("names what differs by its nested path, and what of it replaces", async () => {
  const changed = { ...full, ports: [{ port: 80 }, { port: 443, hostPort: 9443 }], login: { user: "root", password: secret("hunter3") } };
  const update = await stack.preview(declare(changed));
  expect(update.steps.flatMap(({ op, changed: paths }) => [op, ...paths.sort()])).toEqual([
    "update",
    "login.password",
    "ports[1].hostPort",
  ]);
  expect(update.text).toMatch(/hostPort *: 8443 => 9443/);
  expect(update.text).toMatch(/password *: \[secret\] => \[secret\]/);
  const replace = await stack.preview(declare({ ...full, name: "other" }));
  expect(replace.steps.find(({ op }) => op === "replace")).toMatchObject({ changed: ["name"], replacedFor: ["name"] });
});

it("keeps to ignoreChanges, also below the path that is named", async () => {
  const ignored = { ...full, ports: [{ port: 81 }] };
  expect((await stack.preview(declare(ignored, { ignoreChanges: ["ports"] }))).steps.filter(({ op }) => op !== "same")).toEqual([]);
});

it("shows in a preview what follows from the inputs, and the rest as unknown", async () => {
  const program = async () => {
    const a = new stack.Toy("b", { folder: stack.node, content: "hello" });
    return Promise.resolve({ size: a["size"], serial: a["serial"] });
  };
  const { text } = await stack.preview(program);
  expect(text).toMatch(/size *: 5/);
  expect(text).not.toContain("serial of b");
});

it("imports by an id alone, and shows nothing afterwards", async () => {
  await writeFile(join(stack.node, "found"), JSON.stringify({ folder: stack.node, name: "found", content: "made elsewhere" }));
  const args = { folder: stack.node, name: "found", content: "made elsewhere" };
  const program = (options: object) => async () => {
    new stack.Toy("a", { folder: stack.node, ...full });
    new stack.Toy("found", args, options);
    return Promise.resolve({});
  };
  const imported = await stack.up(program({ import: `found@${stack.node}` }));
  expect(imported, imported.text).toMatchObject({ ok: true, counts: { import: 1 } });
  expect((await stack.state()).map(({ id }) => id).sort()).toEqual(["a", "found"]);
  const after = await stack.preview(program({}));
  expect(after, after.text).toMatchObject({ ok: true, counts: { same: 3 } });
  const missing = await stack.preview(async () => {
    new stack.Toy("gone", args, { import: `gone@${stack.node}` });
    return Promise.resolve({});
  });
  expect(missing.text).toContain("does not exist");
});

it("ends what takes longer than its customTimeouts, keeps it, and the next up goes on", async () => {
  const late = await stack.up(declare({ ...full, slow: 30 }, { customTimeouts: { update: "1s" } }));
  expect(late.ok).toBe(false);
  expect(late.text).toContain("longer than the 1 s that its customTimeouts allow");
  const resumed = await stack.up(declare({ ...full, slow: 0 }));
  expect(resumed, resumed.text).toMatchObject({ ok: true });
});

it("ends at once when it is interrupted, keeps what exists, and the next up goes on", async () => {
  const interrupt = new AbortController();
  const file = join(stack.node, "slowly");
  const slowly = (slow: number) => async () => {
    new stack.Toy("slowly", { folder: stack.node, slow });
    return Promise.resolve({});
  };
  const watching = (async () => {
    while (!existsSync(file)) await new Promise((resume) => setTimeout(resume, 20));
    interrupt.abort();
    return performance.now();
  })();
  const cut = await stack.up(slowly(600), interrupt.signal);
  expect(performance.now() - (await watching)).toBeLessThan(30_000);
  expect(cut.ok).toBe(false);
  expect((await stack.state()).find(({ id }) => id === "slowly")?.initErrors).toHaveLength(1);
  const resumed = await stack.up(slowly(0));
  expect(resumed, resumed.text).toMatchObject({ ok: true });
  expect((await stack.state()).find(({ id }) => id === "slowly")?.initErrors ?? []).toEqual([]);
});
