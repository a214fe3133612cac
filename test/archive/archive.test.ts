import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { chmod, link, mkdir, mkdtemp, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { promisify } from "node:util";
import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { deltaOf } from "../../provider/archive/delta.ts";
import { packTree } from "../../provider/archive/pack.ts";
import { readTar } from "../../provider/archive/read.ts";
import type { EntryType, TarEntry } from "../../provider/archive/tar.ts";
import { readTree, type Source } from "../../provider/archive/tree.ts";
import { endOfTar, headerOf, paddingOf } from "../../provider/archive/write.ts";

const run = promisify(execFile);

type Item = Partial<TarEntry> & { path: string; content?: string };

function tarOf(items: Item[]): Buffer {
  const blocks = items.flatMap(({ content = "", ...item }) => {
    const type: EntryType = item.type ?? "file";
    const bytes = Buffer.from(content);
    const fields = { mode: 0o644, uid: 0, gid: 0, mtime: 0, target: "", major: 0, minor: 0, xattrs: {}, ...item };
    return [headerOf({ ...fields, type, size: type === "file" ? bytes.length : 0 }), bytes, paddingOf(bytes.length)];
  });
  return Buffer.concat([...blocks, endOfTar()]);
}

/** In pieces of odd sizes, as streams come. */
function sourceOf(tar: Buffer, options: Partial<Source> = {}): Source {
  async function* open(): AsyncGenerator<Buffer> {
    for (let at = 0; at < tar.length; at += 777) yield await Promise.resolve(tar.subarray(at, at + 777));
  }
  return { name: "the tar", open, ...options };
}

const layers = (...tars: Item[][]): Source[] => tars.map((items, index) => sourceOf(tarOf(items), { whiteouts: index > 0 }));

async function flattened(sources: Source[]): Promise<string[]> {
  const packed = await buffer(packTree(await readTree(sources), sources));
  return listing(packed);
}

/** What a tar holds: `path type content-or-target mode`. */
async function listing(tar: Buffer): Promise<string[]> {
  const lines: string[] = [];
  for await (const { entry, content } of readTar(sourceOf(tar).open())) {
    const bytes: Buffer[] = [];
    for await (const chunk of content) bytes.push(chunk);
    lines.push([entry.path, entry.type, entry.target + Buffer.concat(bytes).toString(), entry.mode.toString(8)].join(" ").trim());
  }
  return lines;
}

describe("a tar", () => {
  it("keeps long names, large numbers, foreign bytes and extended attributes", async () => {
    const entry: TarEntry = {
      path: `dir/${"l\u00f6ng".repeat(60)}`,
      type: "symlink",
      mode: 0o4755,
      uid: 3_000_000_000,
      gid: 7,
      mtime: 1_700_000_000,
      size: 0,
      target: "t".repeat(300),
      major: 0,
      minor: 0,
      xattrs: { "security.capability": "\u0001\u0000\u0000\u0002\u0080\u00ff\u0000\n=", "user.empty": "" },
    };
    const read = [];
    for await (const each of readTar(sourceOf(Buffer.concat([headerOf(entry), endOfTar()])).open())) read.push(each.entry);
    expect(read).toEqual([entry]);
  });

  it.each(["gnu", "pax", "ustar", "v7", "oldgnu"])(
    "of GNU tar in its format %s is read, and what is written GNU tar unpacks to the same",
    async (format) => {
      const directory = await mkdtemp(join(tmpdir(), "cloudlet-archive-"));
      const tree = join(directory, "tree");
      const long = format === "ustar" || format === "v7" ? "short" : "long-".repeat(30);
      await mkdir(join(tree, "sub", long), { recursive: true });
      await writeFile(join(tree, "sub", long, "file"), "x".repeat(1500));
      await writeFile(join(tree, "empty"), "");
      await chmod(join(tree, "empty"), 0o4711);
      await link(join(tree, "empty"), join(tree, "linked"));
      await symlink("../etc/\u00e9", join(tree, "sub", "symlink"));
      const [one, two] = [join(directory, "one.tar"), join(directory, "two.tar")];
      await run("tar", ["-C", tree, `--format=${format}`, "--sort=name", "--mtime=@0", "--owner=5", "--group=6", "-cf", one, "."]);
      const source: Source = { name: "one", open: () => createReadStream(one) as AsyncIterable<Buffer> };
      await writeFile(two, packTree(await readTree([source]), [source]));
      const list = async (path: string): Promise<string[]> =>
        (await run("tar", ["--numeric-owner", "--full-time", "-tvf", path])).stdout
          .split("\n")
          .map((line) => line.replace(/link to (\.\/)?/, "link to ").replace(/ \.\/(?=.)/, " "))
          .sort();
      expect(await list(two)).toEqual(await list(one));
      await mkdir(join(directory, "out"));
      await run("tar", ["-C", join(directory, "out"), "-xf", two]);
      await run("diff", ["-r", "--no-dereference", tree, join(directory, "out")]);
      await rm(directory, { recursive: true });
    },
  );

  it("that is cut off, flipped or sparse is refused", async () => {
    const tar = tarOf([{ path: "a", content: "x".repeat(600) }]);
    const flipped = Buffer.from(tar);
    flipped[3] = 0x41;
    const sparse = Buffer.from(tar);
    sparse[156] = 0x53;
    sparse.write(
      `${sparse
        .subarray(0, 512)
        .reduce((sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte), 0)
        .toString(8)
        .padStart(6, "0")}\0 `,
      148,
    );
    await expect(listing(tar.subarray(0, 900))).rejects.toMatchObject({ code: "INTEGRITY", message: "the tar ends too early" });
    await expect(listing(flipped)).rejects.toMatchObject({ code: "INTEGRITY" });
    await expect(listing(Buffer.from("no tar".repeat(100)))).rejects.toMatchObject({ code: "INTEGRITY" });
    await expect(listing(sparse)).rejects.toMatchObject({ code: "UNSUPPORTED" });
  });
});

describe("layers", () => {
  it("lie one over the other, with what whiteouts remove", async () => {
    const lower: Item[] = [
      { path: "./", type: "directory", mode: 0o711 },
      { path: "etc/", type: "directory", mode: 0o755 },
      { path: "etc/a", content: "old" },
      { path: "etc/b", content: "kept" },
      { path: "gone/x/y", content: "y" },
      { path: "cleared/z", content: "z" },
    ];
    const upper: Item[] = [
      { path: "etc/a", content: "new", mode: 0o600 },
      { path: "cleared/new", content: "n" },
      { path: "cleared/.wh..wh..opq" },
      { path: ".wh.gone" },
      { path: ".wh.never-there" },
    ];
    expect(await flattened(layers(lower, upper))).toEqual([
      "./ directory  711",
      "cleared/ directory  755",
      "etc/ directory  755",
      "etc/b file kept 644",
      "etc/a file new 600",
      "cleared/new file n 644",
    ]);
  });

  it("keep the content of a link whose first name an upper layer replaces", async () => {
    const lower: Item[] = [
      { path: "a", content: "same" },
      { path: "b", type: "link", target: "a" },
      { path: "c", type: "link", target: "./b" },
    ];
    expect(await flattened(layers(lower, [{ path: "a", content: "other" }]))).toEqual([
      "b file same 644",
      "a file other 644",
      "c link b 644",
    ]);
  });

  it("change files to directories and back", async () => {
    const lower: Item[] = [
      { path: "x/deep/file", content: "1" },
      { path: "y", content: "2" },
    ];
    const upper: Item[] = [
      { path: "x", type: "symlink", target: "y" },
      { path: "y/file", content: "3" },
    ];
    await expect(readTree(layers(lower, upper))).rejects.toMatchObject({ code: "INTEGRITY", message: expect.stringContaining("below y") });
    const right: Item[] = [{ path: "x", type: "symlink", target: "y" }, { path: ".wh.y" }, { path: "z/file", content: "3" }];
    expect(await flattened(layers(lower, right))).toEqual(["z/ directory  755", "x symlink y 644", "z/file file 3 644"]);
  });

  it.each<[string, Item[]]>([
    ["names ../x, which leads out", [{ path: "../x" }]],
    ["names /etc/../../x, which leads out", [{ path: "/etc/../../x" }]],
    ["below l, which is no directory", [{ path: "l", type: "symlink", target: "/etc" }, { path: "l/passwd" }]],
    ["links x to ../../etc/shadow", [{ path: "x", type: "link", target: "../../etc/shadow" }]],
    ["links x to y, which is no file", [{ path: "x", type: "link", target: "y" }]],
  ])("that climb out are refused: %s", async (why, items) => {
    const [, words = why] = /^(?:names|links) (.*)$/.exec(why) ?? [];
    await expect(readTree(layers(items))).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining(words.split(",")[0]?.split(" to ").at(-1) ?? ""),
    });
  });

  it("whose digest is another are refused", async () => {
    const tar = tarOf([{ path: "a", content: "x" }]);
    const digest = createHash("sha256").update(tar).digest("hex");
    await readTree([sourceOf(tar, { digest })]);
    const more = Buffer.concat([tar, Buffer.alloc(512)]);
    await expect(readTree([sourceOf(more, { digest })])).rejects.toMatchObject({ code: "INTEGRITY" });
  });
});

describe("a delta", () => {
  const names = fc.constantFrom("a", "b", "c", "a/x", "a/y", "b/x", "a/x/deep", "c/z");
  const items = fc.dictionary(
    names,
    fc.record({
      type: fc.constantFrom<EntryType>("file", "file", "directory", "symlink", "character"),
      content: fc.constantFrom("", "one", "two", "x".repeat(1000)),
      mode: fc.constantFrom(0o644, 0o4755),
      xattrs: fc.constantFrom<Record<string, string>>({}, { "user.k": "\u00ff\u0000" }),
      hard: fc.boolean(),
    }),
  );
  const trees = items.map((record) => {
    const made: Item[] = [];
    for (const [path, { hard, content, type, ...rest }] of Object.entries(record).sort(([a], [b]) => (a < b ? -1 : 1))) {
      const parents = made.filter((other) => path.startsWith(`${other.path}/`));
      if (parents.some((parent) => parent.type !== "directory")) continue;
      const first = made.find((other) => other.type === "file");
      if (hard && first) made.push({ path, type: "link", target: first.path, mode: first.mode ?? 0, xattrs: first.xattrs ?? {} });
      else
        made.push({
          path,
          type,
          ...rest,
          ...(type === "file" && { content }),
          ...(type === "symlink" && { target: content.slice(0, 3), mode: 0o777 }),
        });
    }
    return made;
  });

  it("over what it was made from gives what it was made to be, and nothing where nothing changed", async () => {
    await fc.assert(
      fc.asyncProperty(trees, trees, async (before, after) => {
        const [below, above] = [sourceOf(tarOf(before)), sourceOf(tarOf(after))];
        const delta = await buffer(await deltaOf(below, above));
        expect(await state([below, sourceOf(delta, { whiteouts: true })])).toEqual(await state([above]));
        const again = await buffer(await deltaOf(below, above));
        expect(again.equals(delta)).toBe(true);
        expect(await listing(await buffer(await deltaOf(above, above)))).toEqual([]);
      }),
      { numRuns: 150 },
    );
  });

  it("holds only what is changed", async () => {
    const before: Item[] = [
      { path: "etc/same", content: "s" },
      { path: "etc/old", content: "o" },
      { path: "etc/time", content: "t", mtime: 1 },
    ];
    const after: Item[] = [
      { path: "etc/same", content: "s" },
      { path: "etc/new", content: "n" },
      { path: "etc/time", content: "t", mtime: 2 },
    ];
    const delta = await buffer(await deltaOf(sourceOf(tarOf(before)), sourceOf(tarOf(after))));
    expect(await listing(delta)).toEqual(["etc/.wh.old file  0", "etc/new file n 644"]);
  });

  it("of a file that looks like a removal is refused", async () => {
    const above = sourceOf(tarOf([{ path: "etc/.wh.x", content: "" }]));
    await expect(deltaOf(sourceOf(tarOf([])), above)).rejects.toMatchObject({ code: "REFUSED" });
  });
});

/** Everything that matters of what sources make. */
async function state(sources: Source[]): Promise<unknown[]> {
  const tree = await readTree(sources.map((source) => ({ ...source, contents: true })));
  const groups = new Map<unknown, string>();
  for (const { path, node } of tree.walk()) if (!groups.has(node)) groups.set(node, path);
  return [...tree.walk()].map(({ path, node }) => {
    const { path: _, mtime: _mtime, ...rest } = tree.entry(node) ?? { path, mtime: 0, digest: tree.digest(node).toString("hex") };
    return { path, type: tree.type(node), ...rest, first: groups.get(node) };
  });
}
