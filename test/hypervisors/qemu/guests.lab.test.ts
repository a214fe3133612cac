import { execFile } from "node:child_process";
import { copyFile, cp, mkdtemp, readFile, readdir, stat, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { promisify } from "node:util";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { createQemuDriver } from "../../../provider/hypervisors/qemu/driver.ts";
import { tapName } from "../../../provider/hypervisors/qemu/tap.ts";
import type { Driver, Guest, Progress } from "../../../provider/hypervisors/types.ts";
import { openQemuBench } from "./bench.ts";

const execute = promisify(execFile);
const progress: Progress = { signal: AbortSignal.timeout(900_000), status: () => undefined };

describe("QEMU guests", () => {
  let bench: Awaited<ReturnType<typeof openQemuBench>>;
  let driver: Driver;
  let guest: Guest;
  let template: string;
  beforeAll(async () => {
    bench = await openQemuBench();
    driver = bench.driver;
    await boot("template");
    await shell("true");
    await driver.suspend(guest, progress);
    template = await keepParts();
    await driver.remove(guest, progress);
  });
  afterEach(async () => {
    await driver.remove(guest, progress);
  });
  afterAll(async () => {
    await bench.close();
  });
  const shell = async (script: string, by: Driver = driver) =>
    (await by.exec(guest, ["sh", "-c", script], { timeoutMillis: 60_000 })).stdout;
  const boot = async (name: string, changes: Partial<Guest["spec"]> = {}) => {
    guest = await bench.guest(name, changes);
    await driver.ensure(guest, progress);
    await driver.start(guest, progress);
  };
  const keepParts = async () => {
    const kept = await mkdtemp(join(bench.root, "parts-"));
    for (const part of await driver.exportParts(guest, progress)) await copyFile(part.path, join(kept, part.name));
    return kept;
  };
  /** A guest that runs at once: the memory of one that has booted. */
  const wake = async (name: string, changes: Partial<Guest["spec"]> = {}) => {
    guest = await bench.guest(name, changes);
    const parts = join(bench.root, `parts-of-${name}`);
    await cp(template, parts, { recursive: true });
    await driver.importParts(guest, parts, progress);
    await driver.ensure(guest, progress);
    await driver.start(guest, progress);
  };
  const pidOf = async () => Number.parseInt(await readFile(join(guest.directory, "qemu.pid"), "utf8"), 10);

  it("run as their own user, limited, without a secret on the process list, and leave nothing behind", async () => {
    const canary = "c4n4ry-5ecret";
    await boot("confined", { environment: { TOKEN: canary }, userData: `#!/bin/sh\n# ${canary}\n` });
    expect(await shell("cat /etc/environment")).toContain(canary);
    const pid = await pidOf();
    const status = await readFile(`/proc/${String(pid)}/status`, "utf8");
    expect(status).toMatch(/^Uid:\s+65534\s+65534\s+65534\s+65534$/m);
    expect(status).toMatch(/^Seccomp:\s+2$/m);
    expect(await readFile(`/proc/${String(pid)}/cgroup`, "utf8")).toContain(`/cloudlet/${guest.name}`);
    expect((await execute("ps", ["axeww"])).stdout).not.toContain(canary);
    expect((await stat(join(guest.directory, "seed.iso"))).mode & 0o777).toBe(0o600);
    await driver.remove(guest, progress);
    expect(await readFile("/proc/self/net/dev", "utf8")).not.toContain(tapName(guest.name));
    expect(await readdir(guest.directory)).toEqual([]);
  });

  it("live on without the agent and are adopted by the next one", async () => {
    await wake("adopted");
    await shell("echo kept >/tmp/mark");
    const other = createQemuDriver({ user: "nobody" });
    expect(await other.observe(guest)).toBe("running");
    await other.start(guest, progress);
    expect(await shell("cat /tmp/mark", other)).toBe("kept\n");
  });

  it("are not mistaken for another process with the same pid", async () => {
    await wake("mistaken");
    await driver.stop(guest, progress);
    const [, ...fields] = (await readFile("/proc/self/stat", "utf8")).split(") ");
    const bootId = await readFile("/proc/sys/kernel/random/boot_id", "utf8");
    await writeFile(
      join(guest.directory, "qemu.pid"),
      `${String(process.pid)} (sh) ${fields.join(") ").replace(/ \d+ (\d+ \d+ 18446744073709551615)/, " 1 $1")}${bootId}`,
    );
    expect(await driver.observe(guest)).toBe("stopped");
  });

  it("are stopped, not undefined, after their process was killed, and boot again", async () => {
    await wake("killed");
    await shell("echo there >/var/lib/mark; sync");
    process.kill(await pidOf(), "SIGKILL");
    await expect.poll(() => driver.observe(guest), { timeout: 10_000 }).toBe("stopped");
    await driver.start(guest, progress);
    expect(await shell("cat /var/lib/mark")).toBe("there\n");
  });

  it("run on when an earlier suspend was interrupted with the guest paused", async () => {
    await wake("interrupted");
    await shell("true");
    await driver.suspend(guest, progress);
    await copyFile(join(guest.directory, "suspend.state.zst"), join(guest.directory, "kept"));
    await driver.start(guest, progress);
    await copyFile(join(guest.directory, "kept"), join(guest.directory, "suspend.state.zst"));
    await driver.start(guest, progress);
    expect(await driver.observe(guest)).toBe("running");
    await shell("echo alive");
  });

  it("write down what was in memory when they are stopped out of a suspension", async () => {
    await wake("woken");
    await shell("echo late >/var/lib/mark");
    await driver.suspend(guest, progress);
    await driver.stop(guest, progress);
    expect(await driver.observe(guest)).toBe("stopped");
    await driver.start(guest, progress);
    expect(await shell("cat /var/lib/mark")).toBe("late\n");
  });

  it("resume as they were suspended when more was declared meanwhile, and are restarted for it", async () => {
    await wake("enlarged");
    await shell("echo memory >/tmp/mark; echo late >/var/lib/mark");
    await driver.suspend(guest, progress);
    guest = { ...guest, spec: { ...guest.spec, resources: { ...guest.spec.resources, memoryMib: 160, diskMib: 320 } } };
    expect(await driver.ensure(guest, progress)).toEqual({ restartNeeded: true });
    await driver.start(guest, progress);
    expect(await shell("cat /tmp/mark")).toBe("memory\n");
    await driver.suspend(guest, progress);
    await driver.stop(guest, progress);
    await driver.start(guest, progress);
    expect(await shell("cat /var/lib/mark /sys/block/vda/size")).toBe(`late\n${String(320 * 2048)}\n`);
  });

  it("move while suspended, memory included", async () => {
    await wake("moved");
    await shell("echo memory >/tmp/mark");
    await driver.suspend(guest, progress);
    const kept = await keepParts();
    await driver.remove(guest, progress);
    await driver.importParts(guest, kept, progress);
    await driver.ensure(guest, progress);
    expect(await driver.observe(guest)).toBe("suspended");
    await driver.start(guest, progress);
    expect(await shell("cat /tmp/mark")).toBe("memory\n");
  });

  it("refuse damaged memory with a remedy, and boot from their disk after a stop", async () => {
    await wake("damaged");
    await shell("true");
    await driver.suspend(guest, progress);
    const state = join(guest.directory, "suspend.state.zst");
    const bytes = await readFile(state);
    await writeFile(state, bytes.subarray(0, bytes.length >> 1));
    await expect(driver.start(guest, progress)).rejects.toMatchObject({ fix: expect.stringContaining("boots from its disk") });
    expect(await driver.observe(guest)).toBe("suspended");
    await driver.stop(guest, progress);
    await driver.start(guest, progress);
    expect(await shell("echo up")).toBe("up\n");
  });

  it("restore a snapshot taken while they were stopped, running or not", async () => {
    await wake("offline");
    await shell("echo first >/var/lib/mark");
    await driver.stop(guest, progress);
    await driver.snapshot(guest, "1", progress);
    await driver.start(guest, progress);
    await shell("echo second >/var/lib/mark; sync");
    await driver.restore(guest, "1", progress);
    expect(await shell("cat /var/lib/mark")).toBe("first\n");
  });

  it("have their volumes mounted, and keep their contents over a snapshot", async () => {
    guest = await bench.guest("attached");
    const hostPath = join(bench.root, "volume.raw");
    await driver.createVolume(hostPath, 32, progress);
    guest = { ...guest, volumes: [{ id: "contract/volume", path: "/var/data", hostPath }] };
    await driver.ensure(guest, progress);
    await driver.start(guest, progress);
    expect(await shell("grep -c ' /var/data ext4 ' /proc/mounts")).toBe("1\n");
    await shell("echo in-volume >/var/data/mark");
    await driver.snapshot(guest, "with-volume", progress);
    await driver.stop(guest, progress);
    expect((await buffer(await driver.readVolume(hostPath, progress))).includes("in-volume")).toBe(true);
  });

  it("grow their disk at the next start, and never shrink it", async () => {
    await wake("grown");
    const larger = { ...guest, spec: { ...guest.spec, resources: { ...guest.spec.resources, diskMib: 512, memoryMib: 320 } } };
    expect(await driver.ensure(larger, progress)).toEqual({ restartNeeded: true });
    await driver.stop(guest, progress);
    await driver.ensure(larger, progress);
    await driver.start(larger, progress);
    expect(await shell("cat /sys/block/vda/size")).toBe(`${String(512 * 2048)}\n`);
    await driver.stop(larger, progress);
    await expect(driver.ensure(guest, progress)).rejects.toMatchObject({ code: "INVALID" });
  });

  it("take state files that the base already has, and links, without touching directories above", async () => {
    const changes = { stateFiles: ["/var/lib/app", "/not/there"] };
    const write = (text: string) => shell(`mkdir -p /var/lib/app; echo ${text} >/var/lib/app/a; chmod 711 /var/lib; sync`);
    await wake("source", changes);
    await write("old");
    await shell("ln -s a /var/lib/app/link");
    const tar = await buffer(await driver.exportState(guest, progress));
    await driver.remove(guest, progress);
    await wake("filled", changes);
    await write("newer");
    await driver.stop(guest, progress);
    await driver.importState(guest, Readable.from([tar]), progress);
    await driver.start(guest, progress);
    expect(await shell("cat /var/lib/app/link; stat -c %a /var/lib; ls /not 2>&1 | wc -l")).toBe("old\n711\n1\n");
  });

  it("refuse state files while they run", async () => {
    await wake("busy");
    await expect(driver.importState(guest, Readable.from([]), progress)).rejects.toMatchObject({ code: "REFUSED" });
  });
});
