import { X509Certificate } from "node:crypto";
import { readFileSync, statSync } from "node:fs";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { buffer } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { describeError } from "../../../provider/core/errors.ts";
import type { InstanceSpec } from "../../../provider/agent/protocol.ts";
import { createLxdDriver } from "../../../provider/hypervisors/lxd/driver.ts";
import { restOverTls } from "../../../provider/hypervisors/lxd/socketRest.ts";
import type { Driver, Guest } from "../../../provider/hypervisors/types.ts";
import { driverContract } from "../../contracts/driver.ts";
import { run } from "../../lab/run.ts";
import { digestOf, openLxdBench, progress, type LxdBench } from "./bench.ts";

describe("the LXD driver, like every driver,", () => {
  driverContract(() => openLxdBench("lxdall"));
});

describe("the LXD driver", () => {
  let bench: LxdBench;
  let driver: Driver;
  beforeAll(async () => {
    bench = await openLxdBench("lxdown");
    driver = bench.driver;
  });
  afterAll(() => bench.close());

  const shell = async (guest: Guest, script: string) => (await driver.exec(guest, ["sh", "-c", script], { timeoutMillis: 20_000 })).stdout;
  const make = async (name: string, changes: Partial<InstanceSpec> = {}) => {
    const guest = await bench.guest(name, changes);
    await driver.ensure(guest, progress);
    await driver.start(guest, progress);
    return guest;
  };
  const version = async (guest: Guest, files: Record<string, string>, build: { command?: string; start: string }): Promise<Guest> => {
    const tar = await bench.buildTar(files);
    return { ...guest, buildPath: tar.path, spec: { ...guest.spec, build: { digest: tar.digest, ...build } } };
  };

  it("brings a new version into a running container, which stays the same one with its data", async () => {
    const app = { "app.sh": "while :; do echo version one >/srv-version; sleep 0.1; done\n" };
    const first = await version(await bench.guest("app"), app, { command: "echo built >made-here", start: "echo starting; sh app.sh" });
    await driver.ensure(first, progress);
    await driver.start(first, progress);
    await until("version one", async () => (await shell(first, "cat /srv-version")) === "version one\n");
    await shell(first, "echo kept >/root/data");
    const bootedAt = await shell(first, "stat -c %Y /proc/1");

    const second = await version(
      first,
      { "app.sh": "while :; do echo version two >/srv-version; sleep 0.1; done\n" },
      { start: "echo starting; sh app.sh" },
    );
    expect(await driver.ensure(second, progress)).toEqual({ restartNeeded: false });
    await until("version two", async () => (await shell(second, "cat /srv-version")) === "version two\n");
    expect(await shell(second, "cat /root/data; ls /opt/cloudlet/app /opt/cloudlet/versions | grep -c .; ps | grep -c '[s]h app.sh'")).toBe(
      "kept\n4\n1\n",
    );
    expect(await shell(second, "stat -c %Y /proc/1")).toBe(bootedAt);
    expect(await driver.log(second, 50)).toContain("starting");

    await driver.stop(second, progress);
    await driver.start(second, progress);
    await shell(second, "rm -f /srv-version");
    await until("the application after a restart", async () => (await shell(second, "cat /srv-version 2>/dev/null")) === "version two\n");
  });

  it("keeps the old version running when a build's command fails, and says what it printed", async () => {
    const good = await version(await bench.guest("fails"), { "a.sh": "sleep 4321" }, { start: "sh a.sh" });
    await driver.ensure(good, progress);
    await driver.start(good, progress);
    const bad = await version(good, { "a.sh": "sleep 5432" }, { command: "echo no such compiler >&2; exit 7", start: "sh a.sh" });
    await expect(driver.ensure(bad, progress)).rejects.toMatchObject({
      code: "FAILED",
      message: expect.stringMatching(/exit code 7: no such compiler/),
    });
    expect(await shell(good, "ps | grep -c '[s]leep 4321'; ls /opt/cloudlet/versions | wc -l")).toBe("1\n1\n");
    await driver.remove(good, progress);
  });

  it("says that a changed environment needs a restart until there was one", async () => {
    const before = await make("env", { environment: { COLOUR: "red" } });
    const after = { ...before, spec: { ...before.spec, environment: { COLOUR: "blue", SIZE: "1" } } };
    expect(await driver.ensure(after, progress)).toEqual({ restartNeeded: true });
    expect(await driver.ensure(after, progress)).toEqual({ restartNeeded: true });
    await driver.stop(after, progress);
    await driver.start(after, progress);
    expect(await driver.ensure(after, progress)).toEqual({ restartNeeded: false });
    expect(await shell(after, "tr '\\0' '\\n' </proc/1/environ | grep -E '^(COLOUR|SIZE)=' | sort")).toBe("COLOUR=blue\nSIZE=1\n");
    await driver.remove(after, progress);
  });

  it("attaches a volume that the guest's root can write, and keeps it for the next guest", async () => {
    const hostPath = join(bench.root, "volumes", "data");
    await driver.createVolume(hostPath, 32, progress);
    const attached = (guest: Guest): Guest => ({ ...guest, volumes: [{ id: "test/data", path: "/data", hostPath }] });
    const first = attached(await bench.guest("first"));
    await driver.ensure(first, progress);
    await driver.start(first, progress);
    await shell(first, "echo precious >/data/file; chown 1000:1001 /data/file; chmod 640 /data/file");
    const tar = await buffer(await driver.readVolume(hostPath, progress));
    expect(tar.toString("latin1")).toContain("precious");
    await driver.remove(first, progress);

    const second = await make("second");
    await driver.ensure(attached(second), progress);
    expect(await shell(second, "cat /data/file; stat -c '%u:%g %a' /data/file; stat -c %u /data")).toBe("precious\n1000:1001 640\n0\n");
    await driver.ensure(second, progress);
    expect(await shell(second, "ls /data 2>/dev/null | wc -l")).toBe("0\n");
    await driver.remove(second, progress);
  });

  it("leaves a container alone that bears the name and is not ours", async () => {
    const guest = await make("theirs");
    await bench.lab.hosts.gw.run(`lxc config set ${guest.name} user.cloudlet.id=somebody/else`);
    await expect(driver.ensure(guest, progress)).rejects.toMatchObject({ code: "CONFLICT" });
    expect(await driver.observe(guest)).toBeUndefined();
    await driver.remove(guest, progress);
    expect(await bench.lab.hosts.gw.run("lxc list -f csv -c ns")).toContain(`${guest.name},RUNNING`);
    await bench.lab.hosts.gw.run(`lxc delete -f ${guest.name}`);
  });

  it("takes a base as a compressed root file system and as a unified image", async () => {
    const compressed = join(bench.root, "base.tar.zst");
    await run(["zstd", "-q", "-f", bench.base, "-o", compressed]);
    const unified = join(bench.root, "unified.tar.gz");
    const script = `d=$(mktemp -d) && mkdir $d/rootfs && tar -C $d/rootfs -xf "$1" && printf 'architecture: x86_64\\ncreation_date: 1\\n' >$d/metadata.yaml && tar -C $d -czf "$2" rootfs metadata.yaml && rm -rf $d`;
    await run(["sh", "-c", script, "sh", bench.base, unified]);
    for (const path of [compressed, unified]) {
      const guest = { ...(await bench.guest("packed", { base: { digest: digestOf(path) } })), basePath: path };
      await driver.ensure(guest, progress);
      await driver.start(guest, progress);
      expect(await shell(guest, "stat -c '%u %a' /bin/busybox")).toBe("0 755\n");
      await driver.remove(guest, progress);
    }
    expect(await bench.lab.hosts.gw.run("lxc image list -f csv -c f | wc -l")).toBe("1\n");
  });

  it("refuses a base that is no tar, by name", async () => {
    const path = join(bench.root, "disk.qcow2");
    await run(["sh", "-c", `head -c 4096 /dev/zero >${path}`]);
    const guest = { ...(await bench.guest("qcow", { base: { digest: digestOf(path) } })), basePath: path };
    await expect(driver.ensure(guest, progress)).rejects.toMatchObject({ code: "INVALID" });
  });

  it("loses nothing that a guest wrote until its state was copied", async () => {
    const guest = await make("writes", { stateFiles: ["/var/count"] });
    await shell(
      guest,
      "(i=0; while :; do i=$((i+1)); echo $i >/var/count.new; mv /var/count.new /var/count; done) >/dev/null 2>&1 </dev/null & ",
    );
    await delay(300);
    const copied = (await buffer(await driver.exportState(guest, progress))).toString("latin1");
    expect(await driver.observe(guest)).toBe("stopped");
    const parts = await driver.exportParts(guest, progress);
    const last = await run(["tar", "-xOf", parts[0]?.path ?? "", "backup/container/rootfs/var/count"]);
    expect(copied).toContain(`\0${last}`);
    await driver.remove(guest, progress);
  });

  it("converges when a call that was cut off at any moment is made again", async () => {
    const guest = await bench.guest("cut", { files: [{ path: "/etc/x", content: "eA==", mode: 0o600 }] });
    const kept = join(bench.root, "cut-parts");
    await mkdir(kept);
    const life = async (signal: AbortSignal) => {
      const cuttable = { signal, status: () => undefined };
      await driver.ensure(guest, cuttable);
      await driver.start(guest, cuttable);
      await driver.stop(guest, cuttable);
      await driver.exportParts(guest, cuttable);
      await run(["cp", join(guest.directory, "export/container.tar"), kept]);
      await driver.importParts(guest, kept, cuttable);
    };
    for (let millis = 10; millis < 1_000; millis += 110) {
      const cut = new AbortController();
      const timer = setTimeout(() => cut.abort(), millis);
      await life(cut.signal).catch((error: unknown) => expect(describeError(error)).toMatch(/\[ABORTED\]$/));
      clearTimeout(timer);
      await driver.ensure(guest, progress);
      expect(["running", "stopped"]).toContain(await driver.observe(guest));
      await driver.remove(guest, progress);
      expect(await bench.lab.hosts.gw.run("lxc list -f csv -c n | grep -c ^test-cut || true")).toBe("0\n");
    }
    await life(progress.signal);
    expect(await driver.observe(guest)).toBe("stopped");
    await driver.remove(guest, progress);
  });

  it("makes a pool of its own where LXD has none, and takes it away again", async () => {
    await driver.remove(await bench.guest("app"), progress);
    await driver.uninstall(progress);
    await bench.lab.hosts.gw.run("lxc profile device remove default root && lxc storage delete default");
    const guest = await make("pooled");
    expect(await bench.lab.hosts.gw.run("lxc storage list -f csv")).toMatch(/^cloudlet,dir,/);
    await expect(driver.uninstall(progress)).rejects.toMatchObject({ code: "REFUSED" });
    await driver.remove(guest, progress);
    await driver.uninstall(progress);
    expect(
      await bench.lab.hosts.gw.run("lxc storage list -f csv; lxc image list -f csv; ls -d /var/lib/cloudlet/lxd-* 2>/dev/null || true"),
    ).toBe("");
  });

  it("is quick: times of one guest's life", async () => {
    const times: Record<string, number> = {};
    const timed = async (name: string, work: Promise<unknown>) => {
      const from = performance.now();
      await work;
      times[name] = Math.round(performance.now() - from);
    };
    const guest = await bench.guest("timed");
    await timed("import and create", driver.ensure(guest, progress));
    await timed("create nothing", driver.ensure(guest, progress));
    await timed("start", driver.start(guest, progress));
    await timed("exec", shell(guest, "true"));
    await timed("suspend", driver.suspend(guest, progress));
    await timed("resume", driver.start(guest, progress));
    await timed("stop", driver.stop(guest, progress));
    await timed("export", driver.exportParts(guest, progress));
    const kept = join(bench.root, "kept");
    await mkdir(kept);
    await run(["mv", join(guest.directory, "export/container.tar"), kept]);
    await timed("remove", driver.remove(guest, progress));
    await timed("import parts", driver.importParts(guest, kept, progress));
    console.log(`${String(statSync(join(kept, "container.tar")).size)} bytes;`, times);
    await driver.remove(guest, progress);
    expect(times.start).toBeLessThan(5_000);
  });

  it("reaches a remote LXD by pinned certificates, and no other one", async () => {
    const at = (name: string) => join(bench.root, name);
    for (const name of ["client", "other"]) {
      const subject = ["-subj", `/CN=${name}`, "-keyout", at(`${name}.key`), "-out", at(`${name}.crt`)];
      await run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", ...subject]);
    }
    await bench.lab.hosts.gw.run("lxc config set core.https_address :8443");
    const read = (path: string) => readFileSync(path, "utf8");
    const settings = {
      address: `${bench.lab.hosts.gw.address}:8443`,
      clientCertificate: read(at("client.crt")),
      clientKey: read(at("client.key")),
      serverCertificate: await bench.lab.hosts.gw.run("cat /var/lib/lxd/server.crt"),
    };
    const remote = createLxdDriver({ root: bench.root, rest: restOverTls(settings, "remote LXD") });
    await expect(remote.describe()).rejects.toMatchObject({ code: "UNAUTHORIZED" });
    await bench.lab.hosts.gw.run(`lxc config trust add ${at("client.crt")}`);
    expect((await remote.describe()).accelerator).toBe("none");
    expect(await remote.observe(await bench.guest("any"))).toBeUndefined();
    const { fingerprint256 } = new X509Certificate(settings.serverCertificate);
    const known = restOverTls({ ...settings, serverCertificate: fingerprint256 }, "remote LXD");
    expect((await createLxdDriver({ root: bench.root, rest: known }).describe()).accelerator).toBe("none");
    for (const serverCertificate of [read(at("other.crt")), "ab".repeat(32)]) {
      const wrong = restOverTls({ ...settings, serverCertificate }, "remote LXD");
      await expect(createLxdDriver({ root: bench.root, rest: wrong }).describe()).rejects.toMatchObject({ code: "HOST_KEY" });
    }
  });

  it("says UNREACHABLE while the daemon is down", async () => {
    await bench.lab.hosts.gw.run("lxd shutdown --timeout 20");
    const guest = await bench.guest("any");
    await expect(driver.observe(guest)).rejects.toMatchObject({ code: "UNREACHABLE" });
    await expect(driver.ensure(guest, progress)).rejects.toMatchObject({ code: "UNREACHABLE" });
    await expect(driver.describe()).rejects.toMatchObject({ code: "UNREACHABLE" });
  });
});

async function until(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 15_000;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`waited 15 s in vain for ${what}`);
    await delay(50);
  }
}
