import { access, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { run } from "../../agent/process.ts";

export interface Acceleration {
  accelerator: "kvm" | "tcg";
  reason: string;
}

let probed: Promise<Acceleration> | undefined;

/** Executes a guest with hardware acceleration: a device node proves nothing. Done once per process. */
export function probeAcceleration(): Promise<Acceleration> {
  return (probed ??= probe());
}

// `mov al, 0x31; out 0xf4, al; hlt`: QEMU's debug-exit device ends with (0x31 << 1) | 1
const program = [0xb0, 0x31, 0xe6, 0xf4, 0xf4];
const expectedExit = (0x31 << 1) | 1;

/** A boot sector that leaves QEMU through port 0xf4. */
export function exitingBootSector(): Buffer {
  const sector = Buffer.alloc(512);
  sector.set(program, 0);
  sector.writeUInt16LE(0xaa55, 510);
  return sector;
}

/** Whether that boot sector runs under an accelerator; the reason is for people. */
export async function executes(accelerator: "kvm" | "tcg", timeoutMillis: number): Promise<{ works: boolean; reason: string }> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-probe-"));
  try {
    const disk = join(directory, "boot.raw");
    await writeFile(disk, exitingBootSector());
    const machine = [
      "-nodefaults",
      "-no-user-config",
      "-display",
      "none",
      "-machine",
      "q35",
      "-accel",
      accelerator,
      "-m",
      "16M",
      "-no-reboot",
    ];
    const devices = ["-drive", `file=${disk},format=raw,if=virtio`, "-device", "isa-debug-exit,iobase=0xf4,iosize=0x04"];
    await run(["qemu-system-x86_64", ...machine, ...devices], { timeoutMillis, okCodes: [expectedExit] });
    return { works: true, reason: `a guest executed with ${accelerator}` };
  } catch (error) {
    return { works: false, reason: error instanceof Error ? error.message : String(error) };
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}

async function probe(): Promise<Acceleration> {
  if (
    !(await access("/dev/kvm").then(
      () => true,
      () => false,
    ))
  )
    return { accelerator: "tcg", reason: "software emulation: there is no /dev/kvm" };
  const { works, reason } = await executes("kvm", 3_000);
  return works
    ? { accelerator: "kvm", reason }
    : { accelerator: "tcg", reason: `software emulation: a guest does not run with kvm: ${reason}` };
}
