import { execFileSync } from "node:child_process";
import { describe, expect, it } from "vitest";
import { problemsOf } from "../../provider/agent/install.ts";
import {
  factsScript,
  initScript,
  missingFrom,
  parseFacts,
  plannedPackages,
  platformProblem,
  requiredPackages,
  systemdUnit,
} from "../../provider/agent/installText.ts";
import { parseCpuInfo, parseOsRelease } from "../../provider/agent/facts.ts";
import type { Kind } from "../../provider/agent/protocol.ts";

describe("the platform", () => {
  it.for([
    ["debian", "12", "Debian GNU/Linux 12 (bookworm)", undefined],
    ["debian", "13", "Debian GNU/Linux 13 (trixie)", undefined],
    ["debian", "", "Debian GNU/Linux trixie/sid", undefined],
    ["debian", "11", "Debian GNU/Linux 11 (bullseye)", "Debian GNU/Linux 11 (bullseye) is older than Debian 12"],
    ["ubuntu", "22.04", "Ubuntu 22.04.4 LTS", undefined],
    ["ubuntu", "24.04", "Ubuntu 24.04 LTS", undefined],
    ["ubuntu", "20.04", "Ubuntu 20.04.6 LTS", "Ubuntu 20.04.6 LTS is older than Ubuntu 22.04"],
    ["ubuntu", "23.04", "Ubuntu 23.04", "Ubuntu 23.04 is not an LTS release"],
    ["ubuntu", "24.10", "Ubuntu 24.10", "Ubuntu 24.10 is not an LTS release"],
    ["alpine", "3.20", "Alpine Linux v3.20", "Alpine Linux v3.20 is neither Debian nor Ubuntu"],
    ["", "", "", "an unknown system is neither Debian nor Ubuntu"],
  ])("%s %s", ([id = "", version = "", name = "", problem]) => {
    expect(platformProblem({ id, version, name })).toBe(problem);
  });
});

describe("the facts", () => {
  it("come from a script that runs under a plain shell", () => {
    const facts = parseFacts(execFileSync("sh", ["-c", factsScript()], { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] }));
    expect(facts.os.id).not.toBe("");
    expect(["0", "1"]).toContain(facts.forward);
    expect(facts.node?.major ?? 18).toBeGreaterThanOrEqual(12);
  });

  it("of a commissioned node carry its record and the running agent", () => {
    const record = { owners: ["p/s"], packages: ["zstd"], user: true, sysctl: { "net.ipv4.ip_forward": "0" }, kinds: ["kvm"] };
    const info = { protocol: 1, digest: "a".repeat(64), startedAt: "t", jobs: [] };
    const facts = parseFacts(`os.id=debian
os.version=12
os.name=Debian GNU/Linux 12 (bookworm)
systemd=yes
node=/usr/bin/node
node.version=v18.19.0
package=zstd
package=nftables
user=yes
forward=1
agent=${"a".repeat(64)}
info=${JSON.stringify(info)}
record=${Buffer.from(JSON.stringify(record)).toString("base64")}
`);
    expect(facts).toMatchObject({ systemd: true, node: { major: 18, path: "/usr/bin/node" }, user: true, lxd: false, record, info });
    expect(problemsOf(facts, { ...record, kinds: [] })).toEqual([
      "package dnsmasq-base is not installed",
      "package openssl is not installed",
      "package iproute2 is not installed",
    ]);
  });

  it("of a bare node say so", () => {
    const facts = parseFacts("os.id=debian\nos.version=12\nforward=0\nnode.candidate=18.19.0+dfsg-6~deb12u2\n");
    expect(facts).toMatchObject({
      systemd: false,
      node: undefined,
      nodeCandidate: 18,
      record: undefined,
      info: undefined,
      agentDigest: undefined,
    });
  });
});

describe("packages", () => {
  it.for<[string, Parameters<typeof requiredPackages>[0], Kind[], string[], string[]]>([
    ["a bare node for kvm", { node: undefined, lxd: false }, ["kvm"], ["nodejs", "qemu-utils"], ["lxd"]],
    ["a node with LXD", { node: undefined, lxd: true }, ["lxd"], ["nodejs"], ["lxd"]],
    ["a node without LXD", { node: undefined, lxd: false }, ["lxd"], ["lxd"], ["qemu-utils"]],
    ["a node with a recent Node", { node: { major: 20, path: "/usr/bin/node" }, lxd: false }, [], ["nftables"], ["nodejs"]],
    ["a node with an old Node", { node: { major: 12, path: "/usr/bin/node" }, lxd: false }, [], ["nodejs"], []],
  ])("for %s", ([, facts, kinds, wanted, unwanted]) => {
    const required = requiredPackages(facts, kinds);
    expect(required).toEqual(expect.arrayContaining(wanted));
    for (const name of unwanted) expect(required).not.toContain(name);
  });

  it("that apt adds are recorded with their dependencies, upgrades are not", () => {
    const simulation = `NOTE: This is only a simulation!
Inst libzstd1 [1.5.4] (1.5.5 Debian:12.5/stable [amd64])
Inst libc-ares2 (1.18.1-3 Debian:12.5/stable [amd64])
Inst nodejs (18.19.0+dfsg-6~deb12u2 Debian-Security:12/stable-security [amd64])
Conf nodejs (18.19.0+dfsg-6~deb12u2 Debian-Security:12/stable-security [amd64])
`;
    expect(plannedPackages(simulation)).toEqual(["libc-ares2", "nodejs"]);
    expect(missingFrom(["a", "b"], new Set(["b"]))).toEqual(["a"]);
  });
});

describe("the service", () => {
  it("leaves guests alone when it stops", () => {
    expect(systemdUnit("/usr/bin/node")).toMatch(/^KillMode=process$/m);
    expect(systemdUnit("/usr/bin/node")).toMatch(/^ExecStart=\/usr\/bin\/node \/var\/lib\/cloudlet\/agent.js serve$/m);
  });

  it("is never given up by systemd", () => {
    expect(systemdUnit("/usr/bin/node")).toMatch(/^StartLimitIntervalSec=0$/m);
  });

  it("without systemd is a script that a plain shell understands", () => {
    expect(() => execFileSync("sh", ["-n"], { input: initScript("/usr/bin/node") })).not.toThrow();
    expect(initScript("/usr/bin/node")).toContain("### BEGIN INIT INFO");
  });
});

describe("the agent's facts", () => {
  it("read os-release with and without quotes", () => {
    expect(parseOsRelease('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n# x\n')).toEqual({
      ID: "debian",
      VERSION_ID: "12",
      PRETTY_NAME: "Debian GNU/Linux 12 (bookworm)",
    });
  });

  it("read the processor of both architectures", () => {
    expect(parseCpuInfo("processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu aes\n")).toEqual({
      model: "AMD EPYC",
      flags: ["aes", "fpu"],
    });
    expect(parseCpuInfo("processor\t: 0\nFeatures\t: fp asimd\n")).toEqual({ model: "unknown", flags: ["asimd", "fp"] });
  });
});
