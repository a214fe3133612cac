import { spawn } from "node:child_process";
import { once } from "node:events";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createLab, type Lab } from "./lab.ts";
import { run } from "./run.ts";
import { identify } from "./state.ts";

describe("the lab", () => {
  let lab: Lab<"gw1" | "gw2" | "subscriber">;
  const seen = traces("labself");

  beforeAll(async () => {
    lab = await createLab({ name: "labself", hosts: [{ name: "gw1", lxd: true }, { name: "gw2" }, { name: "subscriber" }] });
  });
  afterAll(async () => {
    await lab.close();
    expect(traces("labself")).toEqual(seen);
    expect(existsSync("/var/lib/cloudlet-lab/labself")).toBe(false);
  });

  it("lets each host reach the others by name", async () => {
    await lab.hosts.subscriber.run("busybox ping -c 1 -w 2 gw1 && busybox ping -c 1 -w 2 gw2");
  });

  it("gives each host a process tree, a name and an id of its own", async () => {
    const ids = await Promise.all(
      [lab.hosts.gw1, lab.hosts.gw2].map((host) => host.run("hostname; cat /etc/machine-id; cat /proc/1/comm")),
    );
    expect(ids[0]).toMatch(/^gw1\n[0-9a-f]{32}\nsh\n$/);
    expect(ids[1]).not.toBe(ids[0]);
  });

  it("hides this machine's own files, services and package sources", async () => {
    expect(await lab.hosts.gw2.run("ls -A /root /home /etc/rc2.d /etc/apt/sources.list.d /mnt").then((it) => it.split("\n\n"))).toEqual([
      "/etc/apt/sources.list.d:",
      "/etc/rc2.d:",
      "/home:\noperator",
      "/mnt:",
      "/root:\n.ssh\n",
    ]);
    expect(await lab.hosts.gw2.run("ls /var/lib")).not.toContain("cloudlet-lab");
  });

  it("accepts root and operator by key, and operator becomes root without a password", async () => {
    expect(await ssh(lab, "root", "id -u")).toBe("0\n");
    expect(await ssh(lab, "operator", "id -u; sudo -n id -u")).toBe("1900\n0\n");
  });

  it("accepts operator by password", async () => {
    const { address, password } = lab.hosts.gw1;
    const script = join(import.meta.dirname, "askpass.sh");
    const options = ["-o", `UserKnownHostsFile=${lab.knownHostsPath}`, "-o", "PubkeyAuthentication=no", "-o", "ConnectTimeout=5"];
    const env = { ...process.env, SSH_ASKPASS: script, SSH_ASKPASS_REQUIRE: "force", LAB_PASSWORD: password };
    expect(await run(["ssh", "-F", "none", ...options, `operator@${address}`, "id -un"], { env, timeoutMillis: 15_000 })).toBe(
      "operator\n",
    );
  });

  it("shapes a link to its rate in both directions", async () => {
    await lab.shape("gw2", { mbit: 40 });
    for (const [from, to] of [
      ["gw1", "gw2"],
      ["gw2", "gw1"],
    ] as const) {
      expect(await bestThroughput(lab, { from, to, enough: 30 })).toBeLessThan(44);
    }
    await lab.shape("gw2", {});
    await bestThroughput(lab, { from: "gw1", to: "gw2", enough: 100 });
  });

  it("counts the bytes that a host sends", async () => {
    const before = await lab.bytesSent("gw1");
    await throughput(lab, "gw1", "gw2");
    const sent = (await lab.bytesSent("gw1")) - before;
    expect(sent).toBeGreaterThan(4 * 1024 * 1024);
    expect(sent).toBeLessThan(4.5 * 1024 * 1024);
  });

  it("delays a link, which carries as before meanwhile and afterwards", async () => {
    const straight = await lab.delay("gw2", 25);
    await lab.hosts.gw1.run("busybox ping -c 1 -w 2 gw2");
    expect(await roundTrip(lab)).toBeGreaterThan(50);
    await lab.shape("gw2", { mbit: 40 });
    expect(await throughput(lab, "gw1", "gw2")).toBeGreaterThan(5);
    await lab.shape("gw2", {});
    await straight();
    expect(await roundTrip(lab)).toBeLessThan(50);
  });

  it("cuts and heals a link, and one between two hosts", async () => {
    expect(await reaches(lab, "subscriber", "gw1")).toBe(true);
    await lab.cut("gw1");
    expect(await reaches(lab, "subscriber", "gw1")).toBe(false);
    expect(await reaches(lab, "subscriber", "gw2")).toBe(true);
    await lab.heal("gw1");
    await lab.cutBetween("gw1", "gw2");
    expect(await reaches(lab, "gw1", "gw2")).toBe(false);
    expect(await reaches(lab, "subscriber", "gw1")).toBe(true);
    await lab.healBetween("gw1", "gw2");
    expect(await reaches(lab, "gw1", "gw2")).toBe(true);
  });

  it("restarts a host with its files and services, without its processes and links", async () => {
    const host = lab.hosts.gw1;
    await host.run(
      "echo kept >/srv/file; ip link add name extra type bridge; nft add table inet extra; setsid sleep 3600 >/dev/null 2>&1 & :",
    );
    await host.restart();
    expect(await host.run("cat /srv/file; ip -br link; nft list ruleset; ps ax")).not.toMatch(/extra|sleep 3600/);
    expect(await ssh(lab, "root", "cat /srv/file")).toBe("kept\n");
    expect(await host.run("lxc storage list --format csv")).toContain("default,dir");
  });

  it("runs start scripts at boot and reaps orphans", async () => {
    const host = lab.hosts.gw2;
    await host.run(
      "printf '#!/bin/sh\\ntouch /run/started' >/etc/init.d/probe; chmod +x /etc/init.d/probe; ln -s ../init.d/probe /etc/rc2.d/S09probe",
    );
    await host.restart();
    await host.run("test -e /run/started");
    await host.run("(sh -c 'exit 0' & exec sleep 0.1) & exec sleep 0.3");
    expect(await host.run("ps ax -o stat=")).not.toMatch(/Z/);
  });
});

describe("a lab whose program was killed", () => {
  it("is removed by the next run with the same name", async () => {
    const seen = traces("labkill");
    const program = `import { createLab } from ${JSON.stringify(join(import.meta.dirname, "lab.ts"))};
      const lab = await createLab({ name: "labkill", hosts: [{ name: "gw1" }, { name: "gw2" }] });
      await lab.hosts.gw1.run("setsid sleep 3600 >/dev/null 2>&1 &");
      console.log("up"); setInterval(() => undefined, 1000);`;
    const child = spawn(process.execPath, ["--input-type=module", "-e", program], { stdio: ["ignore", "pipe", "inherit"] });
    await once(child.stdout, "data");
    await expect(createLab({ name: "labkill", hosts: [{ name: "gw1" }] })).rejects.toMatchObject({ code: "BUSY" });
    child.kill("SIGKILL");
    await once(child, "exit");
    const lab = await createLab({ name: "labkill", hosts: [{ name: "gw1" }] });
    expect(await lab.hosts.gw1.run("ps ax")).not.toContain("sleep 3600");
    await lab.close();
    expect(traces("labkill")).toEqual(seen);
  });
});

describe("two labs", () => {
  it("live side by side in subnets of their own", async () => {
    const first = await createLab({ name: "laba", hosts: [{ name: "gw1" }] });
    const second = await createLab({ name: "labb", hosts: [{ name: "gw1" }] });
    expect(first.hosts.gw1.address).not.toBe(second.hosts.gw1.address);
    await first.close();
    await second.hosts.gw1.run("true");
    await second.close();
  });
});

async function ssh(lab: Lab<"gw1">, user: string, command: string): Promise<string> {
  const options = ["-i", lab.keyPath, "-o", `UserKnownHostsFile=${lab.knownHostsPath}`, "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"];
  return run(["ssh", "-F", "none", ...options, `${user}@${lab.hosts.gw1.address}`, command], { timeoutMillis: 15_000 });
}

type Name = "gw1" | "gw2" | "subscriber";

/** Milliseconds from the first gateway to the second and back; the shortest of some. */
async function roundTrip(lab: Lab<"gw1" | "gw2" | "subscriber">): Promise<number> {
  const text = await lab.hosts.gw1.run("busybox ping -c 4 -w 6 gw2");
  return Number(/min\/avg\/max = ([\d.]+)/.exec(text)?.[1]);
}

async function reaches(lab: Lab<Name>, from: Name, to: Name): Promise<boolean> {
  return (await lab.hosts[from].exec(["busybox", "ping", "-c", "1", "-W", "1", lab.hosts[to].address])).exitCode === 0;
}

/** Mbit/s of 4 MiB over TCP. */
async function throughput(lab: Lab<Name>, from: Name, to: Name): Promise<number> {
  const listen = `let n = 0; require("net").createServer((s) => s.on("data", (d) => (n += d.length)).on("end", () => { console.log(n); process.exit(); })).listen(5001, () => require("fs").writeFileSync("/run/listens", ""))`;
  const receiver = lab.hosts[to].run(`exec node -e '${listen}'`, { timeoutMillis: 30_000 });
  await lab.hosts[to].run("for i in $(seq 200); do test -e /run/listens && rm /run/listens && exit 0; sleep 0.02; done; exit 1");
  const send = `const t = Date.now(); const s = require("net").connect(5001, "${lab.hosts[to].address}", () => s.end(Buffer.alloc(4194304))); s.on("close", () => console.log(Date.now() - t)).resume()`;
  const millis = Number(await lab.hosts[from].run(`node -e '${send}'`, { timeoutMillis: 30_000 }));
  expect((await receiver).trim()).toBe("4194304");
  return (4 * 8.388608) / (millis / 1000);
}

/** Of several, until one is enough: a machine that has other things to do is slower than any link. */
async function bestThroughput(lab: Lab<Name>, { from, to, enough }: { from: Name; to: Name; enough: number }): Promise<number> {
  const rates: number[] = [];
  while (rates.length < 10 && Math.max(...rates) <= enough) rates.push(await throughput(lab, from, to));
  expect(Math.max(...rates)).toBeGreaterThan(enough);
  return Math.max(...rates);
}

/** Everything on this machine that a lab of this name could leave. */
function traces(name: string): string[] {
  const processes = readdirSync("/proc")
    .filter((it) => /^\d+$/.test(it))
    .filter((pid) => existsSync(`/proc/${pid}/cgroup`) && read(`/proc/${pid}/cgroup`).includes(`/clab-${name}/`))
    // a zombie only waits for its parent to look
    .filter((pid) => identify(Number(pid)) !== undefined);
  const mounts = read("/proc/self/mounts")
    .split("\n")
    .filter((line) => line.includes(`clab-${name}-`));
  const groups = readdirSync("/sys/fs/cgroup").filter((it) => existsSync(join("/sys/fs/cgroup", it, `clab-${name}`)));
  const links = readdirSync("/sys/class/net").filter((it) => it === `clab-${name}`);
  return [...processes, ...mounts, ...groups, ...links];
}

function read(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch {
    return "";
  }
}
