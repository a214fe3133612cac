import { copyFile, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Readable } from "node:stream";
import { buffer } from "node:stream/consumers";
import { setTimeout as delay } from "node:timers/promises";
import { extract } from "tar-stream";
import { afterAll, beforeAll, expect, it } from "vitest";
import type { InstanceSpec } from "../../provider/agent/protocol.ts";
import type { Driver, Guest, Progress } from "../../provider/hypervisors/types.ts";

/** One driver with a hypervisor of its own to play with. */
export interface DriverBench {
  driver: Driver;
  /** Describes a guest of which nothing exists yet; its directory does. The same name gives the same directory. */
  guest(name: string, changes?: Partial<InstanceSpec>): Promise<Guest>;
  /** Makes the hypervisor silent for a running guest, until the returned function is called. */
  silence(guest: Guest): Promise<() => Promise<void>>;
  close(): Promise<void>;
}

const progress: Progress = { signal: AbortSignal.timeout(900_000), status: () => undefined };
const place = "/var/lib/contract";
const file = { path: "/etc/contract.conf", content: Buffer.from("colour=green\n").toString("base64"), mode: 0o640 };

/**
 * What every hypervisor driver must do. The base needs a shell, and something on its console after it booted.
 * A tar of state files has names relative to the guest's root, without a leading slash or dot.
 */
export function driverContract(open: () => Promise<DriverBench>): void {
  let bench: DriverBench;
  let driver: Driver;
  let main: Guest;

  beforeAll(async () => {
    bench = await open();
    driver = bench.driver;
    main = await bench.guest("main", { files: [file], environment: { CONTRACT: "a b'c" }, stateFiles: [place] });
  }, 120_000);
  afterAll(async () => {
    for (const name of ["main", "copy"]) await driver.remove(await bench.guest(name), progress);
    await bench.close();
  }, 60_000);

  aboutGuestsThatAreNotThere(() => ({ bench, driver }));

  it("makes a guest, stopped, and making it again changes nothing", { timeout: 60_000 }, async () => {
    await driver.ensure(main, progress);
    expect(await driver.observe(main)).toBe("stopped");
    expect(await driver.ensure(main, progress)).toEqual({ restartNeeded: false });
    expect(await driver.observe(main)).toBe("stopped");
  });
  it("refuses to execute in a stopped guest", async () => {
    await expect(shell(driver, main, "true")).rejects.toMatchObject({ code: "REFUSED" });
  });
  it("starts, and starting again is fine", { timeout: 90_000 }, async () => {
    await driver.start(main, progress);
    await driver.start(main, progress);
    expect(await driver.observe(main)).toBe("running");
    await waitFor("text on the console", async () => (await driver.log(main, 20)).trim() !== "");
    expect((await driver.log(main, 1)).trimEnd().split("\n")).toHaveLength(1);
  });
  it("executes with output, error output, environment and exit code apart", { timeout: 90_000 }, async () => {
    expect(await shell(driver, main, "true")).toEqual({ stdout: "", stderr: "", exitCode: 0 });
    const result = await driver.exec(main, ["sh", "-c", 'printf %s "$COLOUR"; echo oops >&2; exit 3'], {
      environment: { COLOUR: "re d" },
      timeoutMillis: 20_000,
    });
    expect(result).toEqual({ stdout: "re d", stderr: "oops\n", exitCode: 3 });
  });
  it("ends an execution at its deadline with TIMEOUT", { timeout: 30_000 }, async () => {
    await expect(driver.exec(main, ["sleep", "25"], { timeoutMillis: 1_500 })).rejects.toMatchObject({ code: "TIMEOUT" });
  });
  it("has put files and environment into the guest", { timeout: 60_000 }, async () => {
    await waitFor("the file", async () => (await shell(driver, main, `cat ${file.path}`)).stdout === "colour=green\n");
    expect((await shell(driver, main, `stat -c %a ${file.path}`)).stdout).toBe("640\n");
    const environment = await shell(driver, main, "cat /etc/environment 2>/dev/null; cat /proc/1/environ | tr '\\0' '\\n'");
    expect(environment.stdout).toContain("CONTRACT=");
  });
  it("says that a running guest must restart where a change needs it", { timeout: 30_000 }, async () => {
    expect(await driver.ensure(main, progress)).toEqual({ restartNeeded: false });
  });
  it("throws UNREACHABLE, never undefined, while the hypervisor is silent", { timeout: 60_000 }, async () => {
    const heal = await bench.silence(main);
    try {
      await expect(driver.observe(main)).rejects.toMatchObject({ code: "UNREACHABLE" });
    } finally {
      await heal();
    }
    await waitFor("the hypervisor", async () => (await driver.observe(main).catch(() => "silent")) === "running");
  });
  it("suspends a running guest and resumes it with its memory", { timeout: 120_000 }, async () => {
    await shell(driver, main, "sleep 3000 >/dev/null 2>&1 & echo $! >/tmp/sleeper");
    await driver.suspend(main, progress);
    await driver.suspend(main, progress);
    expect(await driver.observe(main)).toBe("suspended");
    await driver.start(main, progress);
    expect(await driver.observe(main)).toBe("running");
    expect((await shell(driver, main, "kill $(cat /tmp/sleeper)")).exitCode).toBe(0);
  });
  aboutCopies(() => ({ bench, driver, main }));
  it("removes a guest, and removing it again is fine", { timeout: 60_000 }, async () => {
    await driver.remove(main, progress);
    await driver.remove(main, progress);
    expect(await driver.observe(main)).toBeUndefined();
  });
  aboutVolumes(() => ({ bench, driver }));
}

function aboutGuestsThatAreNotThere(given: () => { bench: DriverBench; driver: Driver }): void {
  it("names its version and how guests execute", { timeout: 30_000 }, async () => {
    const { version, accelerator } = await given().driver.describe();
    expect(version).toMatch(/^\d+\.\d+/);
    expect(["kvm", "tcg", "none"]).toContain(accelerator);
  });
  it("says undefined for a guest that is not there", async () => {
    const { driver, bench } = given();
    expect(await driver.observe(await bench.guest("absent"))).toBeUndefined();
  });
  it("throws NOT_FOUND where a guest must be there", async () => {
    const { driver, bench } = given();
    const absent = await bench.guest("absent");
    await expect(driver.start(absent, progress)).rejects.toMatchObject({ code: "NOT_FOUND" });
    await expect(driver.suspend(absent, progress)).rejects.toMatchObject({ code: "NOT_FOUND" });
    await expect(driver.snapshot(absent, "first", progress)).rejects.toMatchObject({ code: "NOT_FOUND" });
    await expect(shell(driver, absent, "true")).rejects.toMatchObject({ code: "NOT_FOUND" });
  });
  it("removes a guest that is not there without a word", async () => {
    const { driver, bench } = given();
    await driver.remove(await bench.guest("absent"), progress);
  });
}

function aboutCopies(given: () => { bench: DriverBench; driver: Driver; main: Guest }): void {
  it("restores a snapshot, also with its disk", { timeout: 180_000 }, async () => {
    const { driver, main } = given();
    await shell(driver, main, `mkdir -p ${place}; echo 41 >${place}/count; sync`);
    await driver.snapshot(main, "first", progress);
    await driver.snapshot(main, "first", progress);
    await shell(driver, main, `echo 99 >${place}/count; sync`);
    await driver.restore(main, "first", progress);
    await driver.start(main, progress);
    expect((await shell(driver, main, `cat ${place}/count`)).stdout).toBe("41\n");
    await expect(driver.restore(main, "never-made", progress)).rejects.toMatchObject({ code: "NOT_FOUND" });
  });
  it("stops, and what was written is there after the next start", { timeout: 180_000 }, async () => {
    const { driver, main } = given();
    await shell(driver, main, `echo 42 >${place}/count`);
    await driver.stop(main, progress);
    await driver.stop(main, progress);
    expect(await driver.observe(main)).toBe("stopped");
    await driver.start(main, progress);
    expect((await shell(driver, main, `cat ${place}/count`)).stdout).toBe("42\n");
  });
  it("exports a stopped guest as parts, and makes the guest from them", { timeout: 180_000 }, async () => {
    const { driver, main, bench } = given();
    await driver.stop(main, progress);
    const parts = await driver.exportParts(main, progress);
    const kept = await mkdtemp(join(tmpdir(), "contract-"));
    for (const part of parts) await copyFile(part.path, join(kept, part.name));
    await driver.remove(main, progress);
    const again = await bench.guest("main", main.spec);
    await mkdir(again.directory, { recursive: true });
    await driver.importParts(again, kept, progress);
    await rm(kept, { recursive: true });
    expect(await driver.observe(again)).toBe("stopped");
    await driver.ensure(again, progress);
    await driver.start(again, progress);
    expect((await shell(driver, again, `cat ${place}/count`)).stdout).toBe("42\n");
  });
  it("carries state files of a running guest into a new one, owner and mode included", { timeout: 240_000 }, async () => {
    const { driver, main, bench } = given();
    await shell(
      driver,
      main,
      `echo 43 >${place}/count; mkdir -p ${place}/deep; echo x >${place}/deep/file; chown 1234:1235 ${place}/deep/file; chmod 600 ${place}/deep/file`,
    );
    const tar = await buffer(await driver.exportState(main, progress));
    expect(await driver.observe(main)).toBe("stopped");
    expect(await namesIn(tar)).toEqual(expect.arrayContaining(["var/lib/contract/count", "var/lib/contract/deep/file"]));
    const copy = await bench.guest("copy", { stateFiles: [place] });
    await driver.ensure(copy, progress);
    await driver.importState(copy, Readable.from([tar]), progress);
    await driver.start(copy, progress);
    expect((await shell(driver, copy, `cat ${place}/count; stat -c '%u:%g %a' ${place}/deep/file`)).stdout).toBe("43\n1234:1235 600\n");
    await driver.remove(copy, progress);
  });
}

function aboutVolumes(given: () => { bench: DriverBench; driver: Driver }): void {
  it("carries a volume's contents as a tar into another volume", { timeout: 120_000 }, async () => {
    const { driver, bench } = given();
    const { directory } = await bench.guest("volumes");
    const [first, second] = [join(directory, "first"), join(directory, "second")];
    await driver.createVolume(first, 32, progress);
    await driver.createVolume(first, 32, progress);
    const { pack } = await import("tar-stream");
    const tar = pack();
    tar.entry({ name: "data", type: "directory", mode: 0o750, uid: 1234, gid: 1235 });
    tar.entry({ name: "data/hello", mode: 0o600, uid: 1234, gid: 1235 }, "hello");
    tar.finalize();
    await driver.writeVolume(first, 32, Readable.from(tar), progress);
    await driver.writeVolume(second, 32, await driver.readVolume(first, progress), progress);
    const names = await namesIn(await buffer(await driver.readVolume(second, progress)));
    expect(names).toEqual(expect.arrayContaining(["data/hello"]));
    await rm(directory, { recursive: true });
  });
}

/** Right after a start the guest may not yet listen; drivers wait for it within the deadline. */
function shell(driver: Driver, guest: Guest, script: string) {
  return driver.exec(guest, ["sh", "-c", script], { timeoutMillis: 60_000 });
}

async function waitFor(what: string, holds: () => Promise<boolean>): Promise<void> {
  const deadline = Date.now() + 45_000;
  while (!(await holds())) {
    if (Date.now() > deadline) throw new Error(`waited 45 s in vain for ${what}`);
    await delay(200);
  }
}

async function namesIn(tar: Buffer): Promise<string[]> {
  const names: string[] = [];
  const entries = Readable.from([tar]).pipe(extract());
  for await (const entry of entries) {
    names.push(entry.header.name.replace(/^\.\//, "").replace(/\/$/, ""));
    entry.resume();
  }
  return names;
}
