import { createHash, randomBytes } from "node:crypto";
import { chmod, cp, link, mkdir, mkdtemp, readdir, readFile, rm, symlink, utimes, writeFile } from "node:fs/promises";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { gzipSync } from "node:zlib";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import type { AcquireOptions, ImageSource, LocalBlob } from "../../provider/core/context.ts";
import { Cache } from "../../provider/local/cache.ts";
import { local } from "../../provider/local/files.ts";
import { acquireImage, type Acquiring } from "../../provider/local/images.ts";
import { pushArtefact } from "../../provider/local/registry/artefact.ts";
import { parseReference } from "../../provider/local/registry/reference.ts";
import { openRegistry, type Registry } from "../../provider/local/registry/registry.ts";
import { run } from "../lab/run.ts";
import { openCable, openSilence } from "./registry/cable.ts";
import { startRegistry, type RealRegistry } from "./registry/realRegistry.ts";

const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
const bytesOf = (blob: LocalBlob): Promise<Buffer> => buffer(blob.stream());
const anonymous = (): Promise<undefined> => Promise.resolve(undefined);

let root: string;
let said: string[];
beforeEach(async () => {
  root = await mkdtemp(join(tmpdir(), "cloudlet-images-"));
  said = [];
});
afterEach(() => rm(root, { recursive: true, force: true }));

function acquire(
  source: ImageSource,
  options: Partial<AcquireOptions> = {},
  limits: Partial<Acquiring["limits"]> = {},
): Promise<LocalBlob> {
  const watch = { signal: AbortSignal.timeout(60_000), status: (text: string) => void said.push(text) };
  const from = {
    cache: new Cache(join(root, "cache")),
    files: local,
    limits: { bytes: 64 * 1024 * 1024, ...limits },
    credentials: anonymous,
  };
  return acquireImage(source, { ...watch, ...options }, from);
}

const unfinished = async (): Promise<string[]> => readdir(join(root, "cache/work")).catch(() => []);

describe("an image at a URL", () => {
  let server: Server;
  let address: string;
  let requests: { method: string; range: string; status: number }[];
  let content: Buffer;
  let answer: ((request: IncomingMessage, response: ServerResponse) => boolean) | undefined;

  beforeEach(async () => {
    requests = [];
    answer = undefined;
    content = randomBytes(3_000_000);
    server = createServer((request, response) => {
      response.on("close", () =>
        requests.push({ method: request.method ?? "", range: request.headers.range ?? "", status: response.statusCode }),
      );
      if (answer?.(request, response) !== true) serve(request, response, content);
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    address = `127.0.0.1:${String((server.address() as AddressInfo).port)}`;
  });
  afterEach(() => {
    server.closeAllConnections();
    server.close();
  });

  it("is downloaded once, and again only when it changed", async () => {
    const source = { url: `http://${address}/image.qcow2` };
    expect((await bytesOf(await acquire(source))).equals(content)).toBe(true);
    expect((await acquire(source)).digest).toBe(sha256(content));
    content = randomBytes(1000);
    expect((await acquire(source)).digest).toBe(sha256(content));
    expect(requests.map(({ status }) => status)).toEqual([200, 304, 200]);
    expect(await unfinished()).toEqual([]);
  });

  it("is not asked for when its digest is known and it is there; where that was damaged it comes anew", async () => {
    const digest = sha256(content);
    const source = { url: `http://${address}/image` };
    await acquire(source, { digest });
    await acquire(source, { digest });
    expect(requests).toHaveLength(1);
    await writeFile(join(root, "cache/images", digest), "damaged");
    expect((await bytesOf(await acquire(source, { digest }))).equals(content)).toBe(true);
    await expect(acquire(source, { digest: sha256(Buffer.from("other")) })).rejects.toMatchObject({
      code: "INTEGRITY",
      message: expect.stringContaining(`http://${address}/image has the digest ${digest}`),
    });
  });

  it("goes on where the connection broke", async () => {
    const cable = await openCable(address, { received: 1_300_000, times: 2 });
    expect((await acquire({ url: `http://${cable.address}/image` })).digest).toBe(sha256(content));
    expect(cable.received()).toBeLessThan(content.length + 1_000_000);
    expect(requests.filter(({ status }) => status === 206).length).toBeGreaterThanOrEqual(1);
    await cable.close();
  });

  it("goes on in a later run where an earlier one was cut off", async () => {
    const source = { url: `http://${address}/image` };
    const cancel = new AbortController();
    answer = (_, response) => {
      response.writeHead(200, { etag: '"one"', "content-length": String(content.length) }).write(content.subarray(0, 2_000_000));
      setTimeout(() => cancel.abort(), 300);
      return true;
    };
    await expect(acquire(source, { signal: cancel.signal })).rejects.toMatchObject({ code: "ABORTED" });
    answer = (request, response) => partly(request, response, content);
    expect((await acquire(source)).digest).toBe(sha256(content));
    expect(requests.at(-1)).toMatchObject({ status: 206, range: expect.stringMatching(/^bytes=[1-9]/) });
  });

  it("begins anew where the file changed between two parts", async () => {
    const source = { url: `http://${address}/image` };
    const cancel = new AbortController();
    answer = (_, response) => {
      response.writeHead(200, { etag: '"old"', "content-length": "5000000" }).write(Buffer.alloc(2_000_000));
      setTimeout(() => cancel.abort(), 300);
      return true;
    };
    await expect(acquire(source, { signal: cancel.signal })).rejects.toMatchObject({ code: "ABORTED" });
    answer = (request, response) => partly(request, response, content);
    expect((await acquire(source)).digest).toBe(sha256(content));
  });

  it("is given up when the server is silent, at once or in the middle", async () => {
    const silence = await openSilence();
    await expect(acquire({ url: `http://${silence.address}/x` }, {}, { silenceMillis: 150 })).rejects.toMatchObject({ code: "TIMEOUT" });
    await silence.close();
    answer = (_, response) => response.writeHead(200, { "content-length": "10" }).write("some");
    await expect(acquire({ url: `http://${address}/x` }, {}, { silenceMillis: 150 })).rejects.toMatchObject({ code: "TIMEOUT" });
  });

  it("that is missing, closed or too large is refused by name, without what is secret in it", async () => {
    const source = { url: `http://me:hidden@${address}/image?token=hidden` };
    for (const [status, code] of [
      [404, "NOT_FOUND"],
      [403, "UNAUTHORIZED"],
    ] as const) {
      answer = (_, response) => (response.writeHead(status).end(), true);
      const error: unknown = await acquire(source).catch((thrown: unknown) => thrown);
      expect(error).toMatchObject({ code, message: expect.stringContaining(`http://${address}/image`) });
      expect(String(error)).not.toContain("hidden");
    }
    answer = undefined;
    await expect(acquire(source, {}, { bytes: 1_000_000 })).rejects.toMatchObject({ code: "REFUSED" });
    answer = (_, response) => (Readable.from([content]).pipe(response.writeHead(200)), true);
    await expect(acquire(source, {}, { bytes: 1_000_000 })).rejects.toMatchObject({ code: "REFUSED" });
  });

  it("that two ask for at once comes once", async () => {
    const source = { url: `http://${address}/image` };
    const [one, two] = await Promise.all([acquire(source), acquire(source)]);
    expect(one.digest).toBe(two.digest);
    expect(requests).toHaveLength(1);
  });
});

describe("an image that is built", () => {
  const context = async (files: Record<string, string>): Promise<string> => {
    const directory = await mkdtemp(join(root, "context-"));
    for (const [name, text] of Object.entries(files)) await writeFile(join(directory, name), text);
    return directory;
  };

  it("is the file that the command leaves, built once for the same directory and command", async () => {
    const directory = await context({ input: "content", log: "" });
    const command = `echo ran >>${root}/ran; cat input >"$CLOUDLET_IMAGE"; echo changed >input`;
    expect((await bytesOf(await acquire({ build: { context: directory, command } }))).toString()).toBe("content");
    await acquire({ build: { context: directory, command } });
    expect(await readFile(join(root, "ran"), "utf8")).toBe("ran\n");
    expect(await readFile(join(directory, "input"), "utf8")).toBe("content");
    await writeFile(join(directory, "input"), "other");
    expect((await bytesOf(await acquire({ build: { context: directory, command } }))).toString()).toBe("other");
    expect(await unfinished()).toEqual([]);
  });

  it("is a tar of the root file system that the command leaves, the same for the same content", async () => {
    const tree = join(root, "tree");
    await mkdir(join(tree, "bin"), { recursive: true });
    await writeFile(join(tree, "bin/su"), "program");
    await chmod(join(tree, "bin/su"), 0o4755);
    await link(join(tree, "bin/su"), join(tree, "bin/sudo"));
    await symlink("bin/su", join(tree, "link"));
    const make = async (name: string): Promise<LocalBlob> => {
      const directory = await context({ name });
      const command = `mkdir "$CLOUDLET_IMAGE" && cp -a ${tree}/. "$CLOUDLET_IMAGE" && mknod "$CLOUDLET_IMAGE/null" c 1 3`;
      return acquire({ build: { context: directory, command } });
    };
    const first = await make("one");
    await utimes(join(tree, "bin/su"), 1, 1);
    expect((await make("two")).digest).toBe(first.digest);
    const path = join(root, "root.tar");
    await writeFile(path, first.stream());
    const list = (await run(["tar", "--numeric-owner", "-tvf", path]))
      .split("\n")
      .map((line) => line.replace(/ +\d{4}-\d\d-\d\d \d\d:\d\d/, ""));
    expect(list).toEqual([
      expect.stringMatching(/^drwx\S* 0\/0 +0 \.\/$/),
      "drwxr-xr-x 0/0               0 bin/",
      "-rwsr-xr-x 0/0               7 bin/su",
      "hrwsr-xr-x 0/0               0 bin/sudo link to bin/su",
      "lrwxrwxrwx 0/0               0 link -> bin/su",
      expect.stringMatching(/^crw-\S+ 0\/0 +1,3 null$/),
      "",
    ]);
  });

  it("is refused with what the command printed when it fails or leaves nothing, and is ended when it is cancelled", async () => {
    const directory = await context({ a: "" });
    await expect(acquire({ build: { context: directory, command: "echo no such compiler >&2; exit 7" } })).rejects.toMatchObject({
      code: "FAILED",
      message: expect.stringContaining("exit code 7: no such compiler"),
    });
    await expect(acquire({ build: { context: directory, command: "true" } })).rejects.toMatchObject({ code: "FAILED" });
    const command = `sleep 300 & echo $! >${root}/pid; wait`;
    const signal = AbortSignal.timeout(500);
    await expect(acquire({ build: { context: directory, command } }, { signal })).rejects.toMatchObject({ code: "ABORTED" });
    const pid = Number(await readFile(join(root, "pid"), "utf8"));
    await expect.poll(() => isRunning(pid)).toBe(false);
    expect(await unfinished()).toEqual([]);
  });
});

describe("an image in a registry", () => {
  let real: RealRegistry;
  beforeAll(async () => {
    real = await startRegistry();
  });
  afterAll(() => real.stop());

  const at = (name: string): Registry =>
    openRegistry(parseReference(`${real.address}/${name}`), { signal: AbortSignal.timeout(60_000), credentials: anonymous });
  const put = async (registry: Registry, mediaType: string, content: Buffer) => {
    const descriptor = { mediaType, digest: `sha256:${sha256(content)}`, size: content.length };
    await registry.putBlob(descriptor, () => Readable.from([content]));
    return descriptor;
  };

  it("is the root file system that its layers make, with what upper layers removed", async () => {
    const registry = at("app:one");
    const tree = join(root, "layer");
    const layer = async (script: string): Promise<Buffer> => {
      await rm(tree, { recursive: true, force: true });
      await mkdir(tree);
      await run(["sh", "-c", `cd ${tree} && ${script}`]);
      const tar = join(root, "layer.tar");
      await run(["sh", "-c", `tar -C ${tree} --owner=0 --group=0 --sort=name -cf ${tar} .`]);
      return readFile(tar);
    };
    const lower = gzipSync(
      await layer("mkdir etc bin && echo one >etc/a && echo b >etc/b && echo x >bin/x && ln bin/x bin/y && chmod 4755 bin/x"),
    );
    const upper = await layer("mkdir etc && echo two >etc/a && : >etc/.wh.b");
    await writeFile(join(root, "top"), await layer("mkdir opt && echo opt >opt/o"));
    await run(["zstd", "-q", join(root, "top"), "-o", join(root, "top.zst")]);
    const type = "application/vnd.oci.image.layer.v1.tar";
    const layers = [
      await put(registry, `${type}+gzip`, lower),
      await put(registry, type, upper),
      await put(registry, `${type}+zstd`, await readFile(join(root, "top.zst"))),
    ];
    const config = await put(registry, "application/vnd.oci.image.config.v1+json", Buffer.from("{}"));
    const manifestType = "application/vnd.oci.image.manifest.v1+json";
    await registry.putManifest(manifestType, Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: manifestType, config, layers })));

    const image = await acquire({ image: `${real.address}/app:one` });
    const out = join(root, "out");
    await mkdir(out);
    await writeFile(join(root, "out.tar"), image.stream());
    await run(["tar", "-C", out, "-xf", join(root, "out.tar")]);
    expect(await run(["sh", "-c", `cd ${out} && find . | sort && cat etc/a opt/o && stat -c '%a %h' bin/y`])).toBe(
      "./\n.\n./bin\n./bin/x\n./bin/y\n./etc\n./etc/a\n./opt\n./opt/o\ntwo\nopt\n4755 2\n".replace("./\n", ""),
    );
    said = [];
    expect((await acquire({ image: `${real.address}/app:one` })).digest).toBe(image.digest);
    expect(said.filter((text) => text.startsWith("pulling"))).toEqual([]);
    expect(await unfinished()).toEqual([]);
  });

  it("is the one file of an artefact; of several none", async () => {
    const disk = randomBytes(500_000);
    const layer = {
      mediaType: "application/x-qemu-disk",
      digest: `sha256:${sha256(disk)}`,
      size: disk.length,
      stream: () => Readable.from([disk]),
    };
    const other = { ...layer, digest: `sha256:${sha256(Buffer.from("x"))}`, size: 1, stream: () => Readable.from(["x"]) };
    await pushArtefact(at("disk:one"), { type: "application/x-disk", layers: [layer] }, () => undefined);
    await pushArtefact(at("disk:two"), { type: "application/x-disk", layers: [layer, other] }, () => undefined);
    expect((await acquire({ image: `${real.address}/disk:one` })).digest).toBe(sha256(disk));
    await expect(acquire({ image: `${real.address}/disk:two` })).rejects.toMatchObject({ code: "INVALID" });
    await expect(acquire({ image: `${real.address}/disk:nine` })).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("that is an overlay is refused", async () => {
    const layer = { mediaType: "x/y", digest: `sha256:${sha256(Buffer.from("x"))}`, size: 1, stream: () => Readable.from(["x"]) };
    await pushArtefact(at("overlay:one"), { type: "application/vnd.cloudlet.overlay.v1+json", layers: [layer] }, () => undefined);
    await expect(acquire({ image: `${real.address}/overlay:one` })).rejects.toMatchObject({
      code: "INVALID",
      fix: "give it to an Overlay",
    });
  });
});

it("a file is taken as it is, and refused where its digest is another", async () => {
  await cp(import.meta.filename, join(root, "file"));
  const digest = sha256(await readFile(import.meta.filename));
  expect((await acquire({ file: join(root, "file") }, { digest })).digest).toBe(digest);
  await expect(acquire({ file: join(root, "file") }, { digest: "0".repeat(64) })).rejects.toMatchObject({ code: "INTEGRITY" });
});

/** With an ETag that follows from the content, as servers of files do. */
function serve(request: IncomingMessage, response: ServerResponse, content: Buffer): void {
  const etag = `"${sha256(content).slice(0, 8)}"`;
  if (request.headers["if-none-match"] === etag) return void response.writeHead(304).end();
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  const range = from === 0 ? {} : { "content-range": `bytes ${String(from)}-${String(content.length - 1)}/${String(content.length)}` };
  response
    .writeHead(from === 0 ? 200 : 206, { etag, "content-length": String(content.length - from), ...range })
    .end(content.subarray(from));
}

/** The same, with the tag `"one"`. */
function partly(request: IncomingMessage, response: ServerResponse, content: Buffer): boolean {
  const from = Number(/^bytes=(\d+)-$/.exec(request.headers.range ?? "")?.[1] ?? 0);
  const range = from === 0 ? {} : { "content-range": `bytes ${String(from)}-${String(content.length - 1)}/${String(content.length)}` };
  response.writeHead(from === 0 ? 200 : 206, { etag: '"one"', "content-length": String(content.length - from), ...range });
  response.end(content.subarray(from));
  return true;
}

/** One that has ended and that nobody has waited for is none any more. */
async function isRunning(pid: number): Promise<boolean> {
  const text = await readFile(`/proc/${String(pid)}/stat`, "utf8").catch(() => "");
  return text !== "" && !/\) Z /.test(text);
}
