import { createReadStream } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { InstanceSpec } from "../../../provider/agent/protocol.ts";
import { packTree } from "../../../provider/archive/pack.ts";
import { readTar } from "../../../provider/archive/read.ts";
import type { TarEntry } from "../../../provider/archive/tar.ts";
import { readTree } from "../../../provider/archive/tree.ts";
import { endOfTar, headerOf, paddingOf } from "../../../provider/archive/write.ts";
import type { Guest, RootDelta } from "../../../provider/hypervisors/types.ts";
import { run } from "../../lab/run.ts";
import { digestOf, openLxdBench, progress, type LxdBench } from "./bench.ts";

type Item = Partial<TarEntry> & { path: string; content?: string };

/** What `setcap cap_setuid,cap_net_raw=ep` writes: bytes that are no text. */
const capability =
  "\u0001\u0000\u0000\u0002\u0080\u0020\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000\u0000";

describe("the delta of a container's root file system", () => {
  let bench: LxdBench;
  let base: string;
  let delta: RootDelta;
  beforeAll(async () => {
    bench = await openLxdBench("lxddelta");
    if (bench.driver.rootDelta === undefined) throw new Error("the driver makes no deltas");
    delta = bench.driver.rootDelta;
    base = join(bench.root, "rich.tar");
    const sources = [
      { name: "base", open: () => createReadStream(bench.base) as AsyncIterable<Buffer> },
      sourceOf([
        { path: "opt/one", content: "one", mode: 0o4755, uid: 1000, gid: 1001, mtime: 1000 },
        { path: "opt/two", type: "link", target: "opt/one" },
        { path: "opt/capable", content: "program", mode: 0o755, xattrs: { "security.capability": capability, "user.note": "\u00ff" } },
        { path: "opt/pipe", type: "fifo", mode: 0o600 },
        { path: "opt/old/gone", content: "x" },
        { path: "opt/same", content: "same", mtime: 5 },
      ]),
    ];
    await writeFile(base, packTree(await readTree(sources), sources));
  });
  afterAll(() => bench.close());

  const guestOf = async (name: string, changes: Partial<InstanceSpec> = {}): Promise<Guest> => ({
    ...(await bench.guest(name, { base: { digest: digestOf(base) }, ...changes })),
    basePath: base,
  });
  const shell = async (guest: Guest, script: string): Promise<string> => {
    const result = await bench.driver.exec(guest, ["sh", "-c", script], { timeoutMillis: 20_000 });
    if (result.exitCode !== 0) throw new Error(result.stderr);
    return result.stdout;
  };
  const make = async (guest: Guest): Promise<void> => {
    await bench.driver.ensure(guest, progress);
    await bench.driver.start(guest, progress);
  };
  const deltaOf = async (guest: Guest): Promise<{ path: string; digest: string; lines: string[] }> => {
    const path = join(bench.root, `${guest.name}.delta.tar`);
    await writeFile(path, await buffer(await delta.rootDelta(guest, progress)));
    return { path, digest: digestOf(path), lines: await listing(path) };
  };
  const images = (): Promise<string> => bench.lab.hosts.gw.run("lxc image list -f csv -c f | wc -l");

  it("is empty where nothing was changed, with links, owners, pipes, attributes and capabilities", async () => {
    const guest = await guestOf("fresh");
    await bench.driver.ensure(guest, progress);
    expect((await deltaOf(guest)).lines).toEqual([]);
    await bench.driver.remove(guest, progress);
  });

  it("is refused of a container that runs", async () => {
    const guest = await guestOf("runs");
    await make(guest);
    await expect(delta.rootDelta(guest, progress)).rejects.toMatchObject({ code: "REFUSED" });
    await bench.driver.remove(guest, progress);
  });

  it("makes containers that are as the first one was; the second of them is a plain create", async () => {
    const first = await guestOf("first");
    await make(first);
    await shell(
      first,
      `mkdir -p /srv/app && echo application >/srv/app/run && chown 1000:1001 /srv/app/run && chmod 4750 /srv/app/run
       ln /srv/app/run /srv/app/again && ln -s ../srv/app/run /opt/app && rm -r /opt/old && chmod 600 /opt/same && touch /opt/capable
       ln /opt/one /opt/three && mkfifo /srv/pipe && head -c 3000000 /dev/urandom >/srv/data`,
    );
    await bench.driver.stop(first, progress);
    const made = await deltaOf(first);
    expect((await deltaOf(first)).digest).toBe(made.digest);
    expect(made.lines.filter((line) => !/^(etc|run|tmp|var|dev)\b/.test(line))).toEqual([
      "opt/.wh.old file 0 0:0",
      "opt/app symlink 777 0:0 ../srv/app/run",
      "opt/one file 4755 1000:1001 3",
      "opt/same file 600 0:0 4",
      "opt/three link 4755 1000:1001 opt/one",
      "opt/two link 4755 1000:1001 opt/one",
      "srv/ directory 755 0:0",
      "srv/app/ directory 755 0:0",
      "srv/app/again file 4750 1000:1001 12",
      "srv/app/run link 4750 1000:1001 srv/app/again",
      "srv/data file 644 0:0 3000000",
      "srv/pipe fifo 644 0:0",
    ]);
    await bench.driver.remove(first, progress);

    const said: string[] = [];
    const times: Record<string, number> = {};
    const copies = [await guestOf("second"), await guestOf("third")];
    for (const copy of copies) {
      const began = performance.now();
      await delta.makeFromDelta(copy, made, { ...progress, status: (text) => void said.push(text) });
      times[copy.spec.id] = Math.round(performance.now() - began);
      await delta.makeFromDelta(copy, made, progress);
      expect((await deltaOf(copy)).digest).toBe(made.digest);
      expect(await bench.driver.ensure(copy, progress)).toEqual({ restartNeeded: false });
      await bench.driver.start(copy, progress);
      expect(await shell(copy, "cat /opt/app; stat -c '%u:%g %a %h' /srv/app/run; ls -d /opt/old 2>&1 | grep -c 'No such'")).toBe(
        "application\n1000:1001 4750 2\n1\n",
      );
    }
    console.log("makeFromDelta, milliseconds:", times);
    expect(said.filter((text) => text.startsWith("importing"))).toHaveLength(1);
    expect(await images()).toBe("1\n");
    for (const copy of copies) await bench.driver.remove(copy, progress);
    expect(await images()).toBe("0\n");
  });

  it("gives devices, capabilities and attributes as far as a container can have them", async () => {
    const items: Item[] = [
      { path: "opt/caps", content: "program", mode: 0o755, xattrs: { "security.capability": capability, "user.note": "\u00ff\u0000" } },
      { path: "opt/null", type: "character", mode: 0o666, major: 1, minor: 3 },
    ];
    const path = join(bench.root, "special.tar");
    await writeFile(path, tarOf(items));
    const guest = await guestOf("special");
    await delta.makeFromDelta(guest, { path, digest: digestOf(path) }, progress);
    const entries = await entriesOf((await deltaOf(guest)).path);
    expect(entries).toMatchObject([
      { path: "opt/null", type: "character", major: 1, minor: 3 },
      { path: "opt/caps", xattrs: { "security.capability": capability, "user.note": "\u00ff\u0000" } },
    ]);
    await bench.driver.remove(guest, progress);
  });

  it("works over a compressed image in LXD's own form", async () => {
    const unified = join(bench.root, "unified.tar.gz");
    const script = `d=$(mktemp -d) && mkdir $d/rootfs && tar -C $d/rootfs -xf "$1" && printf 'architecture: x86_64\\ncreation_date: 1\\n' >$d/metadata.yaml && tar -C $d -czf "$2" rootfs metadata.yaml && rm -rf $d`;
    await run(["sh", "-c", script, "sh", bench.base, unified]);
    const over = async (name: string) => ({ ...(await bench.guest(name, { base: { digest: digestOf(unified) } })), basePath: unified });
    const first = await over("unione");
    await make(first);
    await shell(first, "echo new >/opt/new");
    await bench.driver.stop(first, progress);
    const made = await deltaOf(first);
    expect(made.lines).toContain("opt/new file 644 0:0 4");
    const second = await over("unitwo");
    await delta.makeFromDelta(second, made, progress);
    await bench.driver.start(second, progress);
    expect(await shell(second, "cat /opt/new")).toBe("new\n");
    for (const guest of [first, second]) await bench.driver.remove(guest, progress);
    expect(await images()).toBe("0\n");
  });

  it.each<[string, Item[]]>([
    ["climbs out", [{ path: "../../etc/cron.d/x", content: "x" }]],
    [
      "goes through a link",
      [
        { path: "opt/l", type: "symlink", target: "/etc" },
        { path: "opt/l/x", content: "x" },
      ],
    ],
    ["links to what is outside", [{ path: "opt/x", type: "link", target: "../../../etc/shadow" }]],
  ])("is refused where it %s, and nothing is left behind", async (_, items) => {
    const path = join(bench.root, "bad.tar");
    await writeFile(path, tarOf(items));
    const guest = await guestOf("bad");
    await expect(delta.makeFromDelta(guest, { path, digest: digestOf(path) }, progress)).rejects.toMatchObject({ code: "INTEGRITY" });
    expect(await bench.driver.observe(guest)).toBeUndefined();
    expect(await images()).toBe("0\n");
  });

  it("is refused where a byte is flipped or the end is missing, and nothing is left behind", async () => {
    const good = tarOf([{ path: "opt/x", content: "x".repeat(2000) }]);
    const path = join(bench.root, "flipped.tar");
    await writeFile(path, good);
    const digest = digestOf(path);
    const flipped = Buffer.from(good);
    flipped[1000] = (flipped[1000] ?? 0) ^ 1;
    const guest = await guestOf("flipped");
    for (const wrong of [flipped, good.subarray(0, 1024)]) {
      await writeFile(path, wrong);
      await expect(delta.makeFromDelta(guest, { path, digest }, progress)).rejects.toMatchObject({
        code: "INTEGRITY",
        message: expect.stringMatching(/delta|tar/),
      });
      expect(await bench.driver.observe(guest)).toBeUndefined();
    }
    expect(await images()).toBe("0\n");
  });

  it("is never put over a container that was made from something else", async () => {
    const guest = await guestOf("other");
    await bench.driver.ensure(guest, progress);
    const path = join(bench.root, "one.tar");
    await writeFile(path, tarOf([{ path: "opt/x", content: "x" }]));
    await expect(delta.makeFromDelta(guest, { path, digest: digestOf(path) }, progress)).rejects.toMatchObject({ code: "REFUSED" });
    await bench.driver.remove(guest, progress);
  });
});

function tarOf(items: Item[]): Buffer {
  const blocks = items.flatMap(({ content = "", ...item }) => {
    const type = item.type ?? "file";
    const bytes = Buffer.from(content);
    const fields = { mode: 0o644, uid: 0, gid: 0, mtime: 0, target: "", major: 0, minor: 0, xattrs: {}, ...item };
    return [headerOf({ ...fields, type, size: type === "file" ? bytes.length : 0 }), bytes, paddingOf(bytes.length)];
  });
  return Buffer.concat([...blocks, endOfTar()]);
}

function sourceOf(items: Item[]) {
  const tar = tarOf(items);
  async function* open(): AsyncGenerator<Buffer> {
    yield await Promise.resolve(tar);
  }
  return { name: "more", open };
}

async function entriesOf(path: string): Promise<TarEntry[]> {
  const entries: TarEntry[] = [];
  const content = await readFile(path);
  async function* open(): AsyncGenerator<Buffer> {
    yield await Promise.resolve(content);
  }
  for await (const { entry } of readTar(open())) entries.push(entry);
  return entries;
}

async function listing(path: string): Promise<string[]> {
  const entries = await entriesOf(path);
  return entries
    .map(({ path: name, type, mode, uid, gid, size, target }) =>
      [name, type, mode.toString(8), `${String(uid)}:${String(gid)}`, type === "file" && size > 0 ? size : target].join(" ").trim(),
    )
    .sort((a, b) => (a < b ? -1 : 1));
}
