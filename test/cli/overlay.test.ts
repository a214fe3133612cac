import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { parseNode } from "../../provider/cli/node.ts";
import { runCommand } from "../../provider/cli/program.ts";
import { createProgress } from "../../provider/cli/progress.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import type { ConnectionSettings } from "../../provider/transport/types.ts";
import { FakeOverlayNode } from "../fakes/overlayNode.ts";
import { digestOf, sampleOverlay, sampleParts } from "../local/overlays/sample.ts";

let folder: string;
let gw1: FakeOverlayNode;
let gw2: FakeOverlayNode;
const asked: ConnectionSettings[] = [];
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "cloudlet-cli-"));
  gw1 = new FakeOverlayNode("gw1");
  gw2 = new FakeOverlayNode("gw2");
  asked.splice(0);
});
afterEach(() => rm(folder, { recursive: true }));

/** One command line; what it printed, and its exit code. */
async function cloudlet(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  let [out, err] = ["", ""];
  const terminal = { out: (text: string) => void (out += text), err: (text: string) => void (err += text) };
  const code = await runCommand(
    args,
    {
      signal: AbortSignal.timeout(30_000),
      status: () => undefined,
      print: (line) => void (out += `${line}\n`),
      agent(connection) {
        asked.push(connection);
        const node = connection.host === "gw1" ? gw1 : connection.host === "gw2" ? gw2 : undefined;
        return node ? Promise.resolve(node) : Promise.reject(new CloudletError("UNREACHABLE", `${connection.host} did not answer`));
      },
    },
    terminal,
  );
  return { code, out, err };
}

describe("what is asked for", () => {
  it.each([
    ["root@gw1.example.net", { user: "root", host: "gw1.example.net" }],
    ["gw1", { host: "gw1" }],
    ["me@10.0.0.1:2222", { user: "me", host: "10.0.0.1", port: 2222 }],
    ["root@[fe80::1%eth0]:22", { user: "root", host: "fe80::1%eth0", port: 22 }],
  ])("%s names a node", (text, connection) => {
    expect(parseNode(text)).toEqual(connection);
  });

  it.each(["", "root@", "gw1:", "gw1:0", "gw1:70000", "a b", "root@gw1:22:22", "fe80::1", "@gw1"])("%j names none", (text) => {
    expect(() => parseNode(text)).toThrow(/names no node/);
  });

  it.each([
    [[], "Usage: cloudlet"],
    [["overlay"], "Usage: cloudlet overlay"],
    [["overlay", "sing"], "unknown command"],
    [["overlay", "list"], "required option '-n, --node"],
    [["overlay", "export", "abc", "--node", "gw1"], "required option '-o, --output"],
    [["overlay", "import", "--node", "gw1"], "missing required argument 'file'"],
    [["overlay", "list", "--node", "gw1", "--loud"], "unknown option"],
  ])("%j is not understood, and it is said how to ask", async (args, text) => {
    const { code, out, err } = await cloudlet(...args);
    expect({ code, out }).toEqual({ code: 2, out: "" });
    expect(err).toContain(text);
    expect(err).toMatch(/--help|Commands:/);
    expect(asked).toEqual([]);
  });

  it("help shows examples and exit codes", async () => {
    const { code, out } = await cloudlet("overlay", "--help");
    expect(code).toBe(0);
    for (const verb of ["list", "export", "import", "push", "pull"]) expect(out).toContain(`  cloudlet overlay ${verb} `);
    expect(out).toContain("Exit codes: 0 done, 1 failed, 2 not understood, 130 interrupted.");
  });

  it("a failure is one line on stderr that ends with what to do and its code", async () => {
    const { code, out, err } = await cloudlet("overlay", "list", "--node", "gw9");
    expect({ code, out }).toEqual({ code: 1, out: "" });
    expect(err).toMatch(/^gw9 did not answer; .* \[UNREACHABLE\]\n$/);
  });
});

describe("an overlay", () => {
  const contents = sampleParts();
  const own = [contents["manifest.json"], contents.index, contents.pack];
  const below = [contents["parent/manifest.json"], contents["parent/index"], contents["parent/pack"], contents.base];
  const digest = digestOf(contents["manifest.json"]);
  const exported = (): string => join(folder, "faces.tar");

  beforeEach(() => {
    gw1.hold([...own, ...below]);
  });

  it("is listed with what it is and who keeps it", async () => {
    const { code, out } = await cloudlet("overlay", "list", "--node", "gw1");
    expect(code).toBe(0);
    const base = digestOf(contents.base).slice(0, 12);
    expect(out.split("\n")[1]).toMatch(new RegExp(`^${digest.slice(0, 12)}  lxd   .* KiB  ${base}  server of faces/dev$`));
  });

  it("is found by the first digits of its digest, if these are enough", async () => {
    const verify = (text: string) => cloudlet("overlay", "verify", text, "--node", "gw1");
    expect((await verify(digest.slice(0, 6))).out).toContain(digest);
    expect((await verify("000000")).err).toMatch(/keeps no overlay 000000.*\[NOT_FOUND\]/);
    expect((await verify("12")).err).toMatch(/\[INVALID\]/);
    expect((await verify("../../etc")).err).toMatch(/is no digest.*\[INVALID\]/);
  });

  it("goes from node to node by a file, and is kept there once it has been verified", async () => {
    gw2.hold(below, "other/dev");
    gw2.kept.splice(0);
    expect(await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported())).toMatchObject({ code: 0 });
    const { code, out } = await cloudlet("overlay", "import", exported(), "--node", "gw2");
    expect({ code, out }).toEqual({ code: 0, out: `${digest} is on gw2\n` });
    expect(gw2.arrived).toEqual([...own].reverse().map(digestOf));
    expect(gw2.asked).toEqual(["overlay.keep", "overlay.verify"]);
    expect((await cloudlet("overlay", "list", "--node", "gw2")).out).toContain("imported");
  });

  it("takes base and the base's memory along where that is wanted, and then needs nothing at the other end", async () => {
    await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported(), "--with-base");
    expect(await cloudlet("overlay", "import", exported(), "--node", "gw2")).toMatchObject({ code: 0 });
    expect(gw2.arrived).toEqual([...own, ...below].reverse().map(digestOf));
  });

  it("is refused before anything is sent where its base is missing, or the node has another kind of hypervisor", async () => {
    await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported());
    expect((await cloudlet("overlay", "import", exported(), "--node", "gw2")).err).toMatch(
      /needs its base image .*--with-base \[REFUSED\]/,
    );
    gw2.kind = "kvm";
    expect((await cloudlet("overlay", "import", exported(), "--node", "gw2")).err).toMatch(/is for lxd, and gw2 has kvm.*\[REFUSED\]/);
    expect(gw2.arrived).toEqual([]);
  });

  it("that is damaged is refused before the node is even asked", async () => {
    await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported());
    const bytes = await readFile(exported());
    const at = bytes.indexOf(contents.pack) + 5;
    bytes[at] = (bytes[at] ?? 0) ^ 1;
    await writeFile(exported(), bytes);
    asked.splice(0);
    const { code, err } = await cloudlet("overlay", "import", exported(), "--node", "gw2");
    expect(code).toBe(1);
    expect(err).toMatch(/^pack of .* is damaged: .*; export or push the overlay again \[INTEGRITY\]\n$/);
    expect(asked).toEqual([]);
  });

  it("that does not recombine to what was sealed is not kept; one that was kept before stays", async () => {
    await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported(), "--with-base");
    const importing = () => cloudlet("overlay", "import", exported(), "--node", "gw2");
    gw2.verdict = new CloudletError("INTEGRITY", "gw2: the recombined disk is another");
    expect((await importing()).err).toMatch(/the recombined disk is another.*\[INTEGRITY\]/);
    expect(gw2.kept).toEqual([]);
    gw2.verdict = undefined;
    await importing();
    gw2.verdict = new CloudletError("INTEGRITY", "gw2: the recombined disk is another");
    expect((await importing()).code).toBe(1);
    expect(gw2.kept).not.toEqual([]);
  });

  it("whose data in the node's store is damaged is not exported", async () => {
    gw1.blobs.set(digestOf(contents.pack), Buffer.concat([contents.pack.subarray(1), Buffer.from("x")]));
    const { code, err } = await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported());
    expect(code).toBe(1);
    expect(err).toMatch(/^pack of gw1 is damaged: its digest is .* \[INTEGRITY\]\n$/);
    expect(await readdir(folder)).toEqual([]);
  });

  it("of which the node lacks a part is not exported", async () => {
    gw1.blobs.delete(digestOf(contents.pack));
    expect((await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported())).err).toMatch(/gw1 has no data .*\[NOT_FOUND\]/);
    expect(await readdir(folder)).toEqual([]);
  });

  it("is removed where it was imported, and never where a program declares it", async () => {
    await cloudlet("overlay", "export", digest, "--node", "gw1", "-o", exported(), "--with-base");
    await cloudlet("overlay", "import", exported(), "--node", "gw2");
    expect(await cloudlet("overlay", "remove", digest, "--node", "gw2")).toMatchObject({ code: 0, out: `${digest} is removed\n` });
    expect(gw2.kept).toEqual([]);
    expect((await cloudlet("overlay", "remove", digest, "--node", "gw1")).err).toMatch(/belongs to faces\/dev.*\[REFUSED\]/);
    expect(gw1.kept).toHaveLength(1);
  });

  it("is not pushed to a name that is none", async () => {
    const { code, err } = await cloudlet("overlay", "push", digest, "UPPER/x y", "--node", "gw1");
    expect({ code, err }).toEqual({ code: 1, err: expect.stringMatching(/is no reference to a registry.*\[INVALID\]/) as string });
    expect(asked).toEqual([]);
  });
});

it("two overlays whose digests begin alike are not mixed up", async () => {
  const { manifest, index, pack } = sampleOverlay({ base: "0".repeat(64), bytes: 50 });
  gw1.hold([manifest, index, pack]);
  const [first] = gw1.kept;
  if (first) gw1.kept.push({ ...first, digest: `${first.digest.slice(0, 10)}${"0".repeat(54)}` });
  const { err } = await cloudlet("overlay", "verify", first?.digest.slice(0, 8) ?? "", "--node", "gw1");
  expect(err).toMatch(/several overlays.*more of its digits/);
});

describe("progress", () => {
  const shown = (isTTY: boolean): string => {
    let text = "";
    const progress = createProgress({ isTTY, columns: 40, write: (piece: string) => (text += piece) });
    for (const line of ["pack: 1 of 3", "pack: 2 of 3", "index: 1 of 1"]) progress.status(line);
    progress.clear();
    return text;
  };

  it("is a line for each new thing where it goes to a file", () => {
    expect(shown(false)).toBe("pack: 1 of 3\nindex: 1 of 1\n");
  });

  it("is one line that changes on a terminal, and is gone at the end", () => {
    expect(shown(true)).toBe("\r\x1b[2Kpack: 1 of 3\r\x1b[2Kindex: 1 of 1\r\x1b[2K");
  });
});
