import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { checkInputs } from "../../provider/core/check.ts";
import { Declarations } from "../../provider/core/declarations.ts";
import { resources } from "../../provider/index.ts";
import type { ResourceDefinition } from "../../provider/core/define.ts";
import { CloudletError } from "../../provider/core/errors.ts";

type Inputs = Record<string, unknown>;

const digest = "a".repeat(64);
const connection = { host: "192.0.2.1" };
const reach = { connection, nodeAddress: "192.0.2.1" };
const next = { hypervisor: "gw2/kvm", ...reach };
const owner = "project/dev";

/** What an overlay of 256 MiB, saved on an emulated processor, says of itself. */
const made = {
  kind: "kvm",
  base: digest,
  builder: "gw1/kvm",
  resources: { cores: 1, memoryMib: 256, diskMib: 2048 },
  memoryBytes: 4096,
};
const machine = {
  type: "pc-q35-6.2",
  accelerator: "kvm",
  cpu: { model: "host", flags: ["avx2", "sse2"] },
  cores: 1,
  memoryMib: 256,
};
const overlay = { digest: "e".repeat(64) };
const saved = { digest: made.base, memory: { digest: "f".repeat(64), cores: 1, sizeMib: 256, diskMib: 2048 } };
const privateKey = "-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n";
const node = { cores: 2, memoryMib: 1024, accelerator: "kvm", cpuFlags: ["avx2", "sse2"], machineTypes: ["pc-q35-6.2"] };

const good = {
  EdgeCluster: { name: "faces", owner, application: "face-recognition" },
  Node: { name: "gw1", owner, connection },
  Hypervisor: { name: "kvm1", owner, node: "gw1", kind: "kvm", connection, nodeAddress: "192.0.2.1" },
  Cloudlet: {
    name: "server",
    owner,
    cluster: "faces",
    hypervisor: "gw1/kvm",
    connection,
    nodeAddress: "192.0.2.1",
    base: { file: "base.qcow2" },
  },
  BaseImage: { name: "debian", owner, file: "base.qcow2", nodes: ["gw1/kvm"], connections: [{ hypervisor: "gw1/kvm", ...reach }] },
  Overlay: {
    name: "recogniser",
    owner,
    base: { image: "debian", digest },
    builder: "gw1/kvm",
    ...reach,
    script: "/opt/start",
    ready: { tcp: 8080 },
  },
  Volume: { name: "data", owner, hypervisor: "gw1/kvm", connection, sizeMib: 64 },
} satisfies Record<string, Inputs>;
type Type = keyof typeof good;

function definitionOf(type: string): ResourceDefinition {
  const found = resources.find(({ token }) => token.endsWith(`:${type}`));
  if (!found) throw new Error(`no resource ${type}`);
  return found;
}

async function check(type: string, news: Inputs, extra: { old?: Inputs; others?: [string, Inputs][] } = {}) {
  const declarations = new Declarations();
  const local = {
    digestFile: async (path: string) => {
      if (path.startsWith("missing")) throw new CloudletError("NOT_FOUND", `there is no file ${path}`, { fix: "correct the path" });
      return digest;
    },
    digestDirectory: async () => digest,
    digestOverlay: async () => digest,
  };
  for (const [other, inputs] of extra.others ?? []) await checkInputs(definitionOf(other), { news: inputs, declarations, local });
  return checkInputs(definitionOf(type), { news, old: extra.old, declarations, local });
}

/** What is changed in good inputs, and the path and words that the failure must have. */
const bad: [type: Type, change: Inputs, path: string, words: RegExp, extra?: { old?: Inputs; others?: [string, Inputs][] }][] = [
  ["EdgeCluster", { application: undefined }, "application", /required|missing/i],
  ["EdgeCluster", { application: "" }, "application", /./],
  ["EdgeCluster", { application: 7 }, "application", /text/],
  ["EdgeCluster", { name: "Faces" }, "name", /lower-case/],
  ["EdgeCluster", { name: "f".repeat(41) }, "name", /40/],
  ["EdgeCluster", { aplication: "x" }, "aplication", /application/],
  ["Node", { connection: undefined }, "connection", /required|missing/i],
  ["Node", { connection: {} }, "connection.host", /./],
  ["Node", { connection: { host: "" } }, "connection.host", /./],
  ["Node", { connection: { host: "a", port: 0 } }, "connection.port", /1/],
  ["Node", { connection: { host: "a", port: 65536 } }, "connection.port", /65535/],
  ["Node", { connection: { host: "a", port: "22" } }, "connection.port", /number/],
  ["Node", { connection: { host: "a", port: 22.5 } }, "connection.port", /int|whole/i],
  ["Node", { connection: { host: "a", hostkey: "x" } }, "connection.hostkey", /hostKey/],
  ["Node", { connection: { host: "a", proxy: {} } }, "connection.proxy.host", /./],
  ["Node", { connection: { host: "a", proxy: { host: "b", proxy: { host: "c" } } } }, "connection.proxy.proxy", /./],
  ["Node", { connection: { host: "a", perDialTimeout: -1 } }, "connection.perDialTimeout", /./],
  ["Node", { connection: "192.0.2.1" }, "connection", /object/],
  ["Node", { install: "always" }, "install", /auto/],
  ["Node", { onUnreachable: "ignore" }, "onUnreachable", /forget/],
  ["Node", { name: "gw2" }, "connection.host", /same machine/, { others: [["Node", good.Node]] }],
  ["Hypervisor", { kind: "xen" }, "kind", /kvm/],
  ["Hypervisor", { kind: undefined }, "kind", /./],
  ["Hypervisor", { node: undefined }, "node", /./],
  ["Hypervisor", { node: "GW1" }, "node", /lower-case/],
  [
    "Hypervisor",
    { kind: "kvm", lxd: { address: "https://192.0.2.1:8443", clientCertificate: "c", clientKey: "k", serverCertificate: "s" } },
    "lxd",
    /remove/,
  ],
  [
    "Hypervisor",
    { kind: "lxd", lxd: { address: "http://192.0.2.1", clientCertificate: "c", clientKey: "k", serverCertificate: "s" } },
    "lxd.address",
    /https/,
  ],
  [
    "Hypervisor",
    { name: "second", kind: "lxd" },
    "node",
    /already has the hypervisor "kvm1"/,
    { others: [["Hypervisor", good.Hypervisor]] },
  ],
  ["Hypervisor", { name: "second" }, "node", /already has the hypervisor "kvm1"/, { others: [["Hypervisor", good.Hypervisor]] }],
  ["Cloudlet", { cluster: undefined }, "cluster", /./],
  ["Cloudlet", { hypervisor: "gw1" }, "hypervisor", /gw1\/kvm/],
  ["Cloudlet", { hypervisor: "gw1/xen" }, "hypervisor", /gw1\/kvm/],
  ["Cloudlet", { base: undefined }, "base", /./],
  ["Cloudlet", { base: {} }, "base.file", /./],
  ["Cloudlet", { base: { file: "missing.qcow2" } }, "base.file", /no file/],
  ["Cloudlet", { base: { file: "base.qcow2", digest: "b".repeat(64) } }, "base.digest", /correct the digest/],
  ["Cloudlet", { base: { file: "base.qcow2", digest: "xyz" } }, "base.digest", /SHA-256/],
  ["Cloudlet", { state: "paused" }, "state", /suspended/],
  ["Cloudlet", { resources: { cores: 0 } }, "resources.cores", /1/],
  ["Cloudlet", { resources: { memoryMib: 8 } }, "resources.memoryMib", /32/],
  ["Cloudlet", { resources: { memoryMb: 256 } }, "resources.memoryMb", /memoryMib/],
  ["Cloudlet", { resources: { cores: 8 }, capacity: { cores: 2, memoryMib: 1024 } }, "resources.cores", /the node has 2/],
  ["Cloudlet", { resources: { memoryMib: 4096 }, capacity: { cores: 2, memoryMib: 1024 } }, "resources.memoryMib", /the node has 1024/],
  ["Cloudlet", { ports: [{ port: 80 }, { port: 70000 }] }, "ports[1].port", /65535/],
  ["Cloudlet", { ports: [{ port: 80, hostPort: -1 }] }, "ports[0].hostPort", /1/],
  ["Cloudlet", { ports: [{ port: 80, protocol: "sctp" }] }, "ports[0].protocol", /tcp/],
  ["Cloudlet", { ports: { port: 80 } }, "ports", /array|list/],
  ["Cloudlet", { ports: [{ port: 80 }, { port: 81, hostPort: 80 }] }, "ports[1].hostPort", /taken by ports\[0\]/],
  [
    "Cloudlet",
    { name: "other", ports: [{ port: 80 }] },
    "ports[0].hostPort",
    /taken by cloudlet "server"/,
    { others: [["Cloudlet", { ...good.Cloudlet, ports: [{ port: 8080, hostPort: 80 }] }]] },
  ],
  ["Cloudlet", { files: [{ path: "etc/app", content: "" }] }, "files[0].path", /absolute/],
  ["Cloudlet", { files: [{ path: "/etc/app", content: "x".repeat(1024 * 1024 + 1) }] }, "files[0].content", /./],
  ["Cloudlet", { environment: { "NOT-A-NAME": "x" } }, 'environment["NOT-A-NAME"]', /letters/],
  ["Cloudlet", { environment: { A: 1 } }, "environment.A", /text/],
  ["Cloudlet", { stateFiles: ["var/lib"] }, "stateFiles[0]", /absolute/],
  ["Cloudlet", { volumes: [{ volume: "data", path: "data" }] }, "volumes[0].path", /absolute/],
  [
    "Cloudlet",
    {
      volumes: [
        { volume: "data", path: "/d" },
        { volume: "more", path: "/d" },
      ],
    },
    "volumes[1].path",
    /twice/,
  ],
  [
    "Cloudlet",
    { hypervisor: "gw2/kvm", volumes: [{ volume: "data", path: "/d" }] },
    "volumes[0].volume",
    /follows its cloudlet/,
    { others: [["Volume", good.Volume]] },
  ],
  ["Cloudlet", { ready: {} }, "ready", /exactly one/],
  ["Cloudlet", { ready: { tcp: 80, log: "up" } }, "ready", /exactly one/],
  ["Cloudlet", { ready: { log: "(" } }, "ready.log", /regular expression/],
  ["Cloudlet", { ready: { http: { port: 80, path: "index" } } }, "ready.http.path", /\//],
  ["Cloudlet", { ready: { tcp: 80, timeoutSeconds: 0 } }, "ready.timeoutSeconds", /1/],
  ["Cloudlet", { hypervisor: "gw1/lxd", userData: "#!/bin/sh" }, "userData", /has no "userData"/],
  ["Cloudlet", { build: { context: "app", start: "./run" } }, "build", /has no "build"/],
  ["Cloudlet", { application: "games" }, "application", /serves "face-recognition"/, { others: [["EdgeCluster", good.EdgeCluster]] }],
  ["Cloudlet", { hypervisor: "gw1/lxd" }, "base", /image for kvm/, { old: { ...good.Cloudlet, base: { file: "base.qcow2", digest } } }],
  [
    "Cloudlet",
    { hypervisor: "gw1/lxd" },
    "stateFiles",
    /carries only state files/,
    { old: { ...good.Cloudlet, base: { file: "old", digest: "c".repeat(64) } } },
  ],
  ["Cloudlet", { base: { file: "a", image: "debian", digest } }, "base.image", /one of them/],
  ["Cloudlet", { base: { image: "debian" } }, "base.digest", /BaseImage itself/],
  ["Cloudlet", { overlay, files: [{ path: "/etc/app", content: "" }] }, "files", /on the Overlay/],
  ["Cloudlet", { overlay, environment: { A: "1" } }, "environment", /on the Overlay/],
  ["Cloudlet", { overlay, userData: "#!/bin/sh" }, "userData", /on the Overlay/],
  ["Cloudlet", { overlay, build: { context: "app", start: "./run" } }, "build", /./],
  ["Cloudlet", { overlay: { digest: "recent" } }, "overlay.digest", /SHA-256/],
  ["Cloudlet", { overlay, made: { ...made, kind: "lxd" } }, "overlay", /is for lxd, and gw1\/kvm is kvm/],
  ["Cloudlet", { overlay, made: { ...made, base: "b".repeat(64) } }, "overlay", /built over base b+/],
  ["Cloudlet", { overlay, made, resources: { diskMib: 1024 } }, "resources.diskMib", /2048/],
  ["Cloudlet", { overlay, made, machine, capacity: { ...node, cpuFlags: ["sse2"] } }, "overlay", /avx2/],
  ["Cloudlet", { overlay, made, machine, capacity: { ...node, machineTypes: ["pc-q35-5.2"] } }, "overlay", /pc-q35-6\.2/],
  ["Cloudlet", { base: saved, resources: made.resources, machine, capacity: { ...node, cpuFlags: ["sse2"] } }, "base", /avx2/],
  ["Cloudlet", { handoff: { maxDowntimeMillis: 0 } }, "handoff.maxDowntimeMillis", /1/],
  ["Cloudlet", { handoff: { maxTotalSeconds: 1.5 } }, "handoff.maxTotalSeconds", /whole number/],
  ["Cloudlet", { handoff: { onExceeded: "wait" } }, "handoff.onExceeded", /throttle/],
  ["Cloudlet", { handoff: { maxDowntime: 5 } }, "handoff.maxDowntime", /did you mean "maxDowntimeMillis"/],
  [
    "Cloudlet",
    { handoff: { maxDowntimeMillis: 5000, maxTotalSeconds: 3 } },
    "handoff.maxDowntimeMillis",
    /longer than the whole move of 3 s/,
  ],
  ["Cloudlet", { handoff: { preseed: ["gw2"] } }, "handoff.preseed[0]", /gw1\/kvm/],
  ["Cloudlet", { handoff: { preseed: ["gw2/kvm"] } }, "handoff.preseed[0]", /how to reach it is not said/],
  [
    "Cloudlet",
    { handoff: { preseed: ["gw1/kvm", "gw2/lxd"] }, preseedConnections: [next, { ...next, hypervisor: "gw1/kvm" }] },
    "handoff.preseed[1]",
    /runs on gw1\/kvm; name hypervisors of its kind/,
  ],
  ["Cloudlet", { handoff: { preseed: ["gw2/kvm", "gw2/kvm"] }, preseedConnections: [next] }, "handoff.preseed[1]", /once/],
  ["Cloudlet", { hypervisor: "gw1/lxd", handoff: { maxDowntimeMillis: 500 } }, "handoff", /kind "lxd" has no "live"/],
  ["Cloudlet", { overlay, hydrate: { timeoutSeconds: 0 } }, "hydrate.timeoutSeconds", /1/],
  ["Cloudlet", { overlay, hydrate: { onTimeout: "fail" } }, "hydrate.onTimeout", /boot/],
  ["BaseImage", { file: undefined }, "file", /exactly one/],
  ["BaseImage", { url: "https://images.example/a.qcow2" }, "url", /exactly one/],
  ["BaseImage", { file: undefined, url: "ftp://images.example/a" }, "url", /https/],
  ["BaseImage", { file: undefined, build: { context: "image" } }, "build.command", /missing/],
  ["BaseImage", { file: "missing.qcow2" }, "file", /no file/],
  ["BaseImage", { digest: "b".repeat(64) }, "digest", /correct the digest/],
  ["BaseImage", { nodes: ["gw1"] }, "nodes[0]", /gw1\/kvm/],
  ["BaseImage", { nodes: ["gw1/kvm", "gw2/lxd"] }, "nodes[1]", /one kind/],
  ["BaseImage", { nodes: ["gw1/kvm", "gw2/kvm"] }, "nodes[1]", /how to reach/],
  ["BaseImage", { nodes: [], memory: { sizeMib: 256, ready: { tcp: 22 } } }, "memory", /`nodes` is empty/],
  ["BaseImage", { memory: { sizeMib: 256 } }, "memory.ready", /missing/],
  ["BaseImage", { memory: { sizeMib: 256, ready: {} } }, "memory.ready", /exactly one/],
  ["BaseImage", { memory: { sizeMib: 256, ready: { tcp: 22 }, builder: "gw2/kvm" } }, "memory.builder", /none of `nodes`/],
  [
    "BaseImage",
    { nodes: ["gw1/lxd"], connections: [{ hypervisor: "gw1/lxd", ...reach }], memory: { sizeMib: 256, ready: { tcp: 22 } } },
    "memory",
    /kvm only/,
  ],
  ["Overlay", { base: undefined }, "base", /missing/],
  ["Overlay", { ready: undefined }, "ready", /missing/],
  ["Overlay", { ready: { tcp: 80, log: "up" } }, "ready", /exactly one/],
  ["Overlay", { builder: "gw1" }, "builder", /gw1\/kvm/],
  ["Overlay", { builder: "gw1/lxd", userData: "x" }, "userData", /has no "userData"/],
  ["Overlay", { login: {} }, "login", /ssh.*console/],
  ["Overlay", { login: { ssh: { user: "-oProxyCommand=x", privateKey } } }, "login.ssh.user", /user name/],
  ["Overlay", { login: { ssh: { port: 0, privateKey } } }, "login.ssh.port", /1/],
  ["Overlay", { login: { ssh: { privateKey: "~/.ssh/id" } } }, "login.ssh.privateKey", /private key in OpenSSH/],
  ["Overlay", { login: { ssh: { privateKey: privateKey.replace("PRIVATE", "ENCRYPTED PRIVATE") } } }, "login.ssh.privateKey", /passphrase/],
  ["Overlay", { login: { console: { password: "a\nb" } } }, "login.console.password", /one line/],
  ["Overlay", { builder: "gw1/lxd", login: { console: {} } }, "login", /containers/],
  ["Overlay", { file: "app.overlay", script: undefined, ready: undefined, login: { console: {} } }, "login", /built already/],
  ["Overlay", { base: { file: "missing.qcow2" } }, "base.file", /no file/],
  ["Overlay", { file: "app.overlay" }, "script", /built already/],
  ["Overlay", { file: "app.overlay", script: undefined }, "ready", /built already/],
  ["Overlay", { file: "a", image: "b", script: undefined, ready: undefined }, "image", /exactly one/],
  ["Overlay", { file: "a", digest: "b".repeat(64), script: undefined, ready: undefined }, "digest", /correct the digest/],
  [
    "Overlay",
    { base: { image: "debian", digest, memory: { digest, cores: 1, sizeMib: 512, diskMib: 2048 } }, resources: { memoryMib: 256 } },
    "resources.memoryMib",
    /has 512/,
  ],
  ["Volume", { sizeMib: 4 }, "sizeMib", /8/],
  ["Volume", { sizeMib: 32 }, "sizeMib", /only grows/, { old: good.Volume }],
  ["Volume", { retainOnDelete: "yes" }, "retainOnDelete", /true|boolean/],
];

describe("bad input", () => {
  it.each(bad.map((row) => [`${row[0]} ${JSON.stringify(row[1]).slice(0, 100)}`, row] as const))(
    "of %s is a failure with its path",
    async (_title, [type, change, path, words, extra]) => {
      const news: Inputs = { ...good[type], ...change };
      for (const [key, value] of Object.entries(news)) if (value === undefined) delete news[key];
      const { issues } = await check(type, news, extra);
      expect(issues.map((issue) => issue.path)).toContain(path);
      expect(issues.find((issue) => issue.path === path)?.message).toMatch(words);
    },
  );

  it("covers at least forty cases, and the good inputs pass", async () => {
    expect(bad.length).toBeGreaterThanOrEqual(40);
    for (const [type, inputs] of Object.entries(good)) expect((await check(type, inputs)).issues).toEqual([]);
  });

  it("never quotes a secret in a message", async () => {
    const secret = "hunter2-canary";
    for (const change of [{ password: secret, port: "x" }, { privateKey: secret, hst: 1 }, { privateKeyPassword: { a: secret } }]) {
      const { issues } = await check("Node", { ...good.Node, connection: { host: "a", ...change } });
      expect(issues.length).toBeGreaterThan(0);
      expect(JSON.stringify(issues)).not.toContain(secret);
    }
  });
});

describe("any JSON at all", () => {
  const unknown = "04da6b54-80e4-46f7-96ec-b56ff0331ba9";
  it.each(resources.map(({ token }) => token))("is a failure with a path, or passes: %s", async (token) => {
    const type = token.split(":")[2] ?? "";
    const fields = Object.keys(definitionOf(type).inputs.shape);
    const value = fc.oneof(fc.jsonValue({ maxDepth: 3 }), fc.constant(unknown));
    const inputs = fc.oneof(
      fc.dictionary(fc.string(), value),
      fc.dictionary(fc.constantFrom(...fields), value),
      fc.tuple(fc.constantFrom(...fields), value).map(([field, changed]) => ({ ...good[type as Type], [field]: changed })),
    );
    await fc.assert(
      fc.asyncProperty(inputs, async (news) => {
        const { issues } = await check(type, news as Inputs);
        for (const { path, message } of issues) {
          expect(typeof path).toBe("string");
          expect(message.length).toBeGreaterThan(0);
          expect(message).not.toContain("BUG");
        }
      }),
      { numRuns: 150 },
    );
  });
});
