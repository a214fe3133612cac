import { CloudletError } from "../core/errors.ts";
import type { Driver } from "../hypervisors/types.ts";
import type { HypervisorSpec } from "./protocol.ts";

/** The driver of a kind; only the one that is used is loaded. */
export async function createDriver(spec: HypervisorSpec, options: { root: string; log(line: string): void }): Promise<Driver> {
  if (spec.kind === "kvm") {
    const { createQemuDriver } = await import("../hypervisors/qemu/driver.ts");
    return createQemuDriver({
      log: (line) => {
        options.log(line);
      },
    });
  }
  const { createLxdDriver } = await import("../hypervisors/lxd/driver.ts");
  const { findLxdSocket, restOverSocket, restOverTls } = await import("../hypervisors/lxd/socketRest.ts");
  const rest =
    spec.lxd === undefined ? restOverSocket(findLxdSocket(), "LXD on this node") : restOverTls(spec.lxd, `LXD at ${spec.lxd.address}`);
  return createLxdDriver({ root: options.root, rest });
}

export async function probeAcceleration(): Promise<{ kvm: boolean; reason: string }> {
  const qemu = await import("../hypervisors/qemu/acceleration.ts");
  const { accelerator, reason } = await qemu.probeAcceleration();
  return { kvm: accelerator === "kvm", reason };
}

const viewFormats = ["qcow2", "raw", "vmdk", "vhdx"] as const;

/** Shows a disk image as one raw file for as long as `work` lasts. */
export async function rawView<T>(
  { file, format }: { file: string; format: string },
  signal: AbortSignal,
  work: (rawPath: string) => Promise<T>,
): Promise<T> {
  const known = viewFormats.find((name) => name === format);
  if (known === undefined) throw new CloudletError("UNSUPPORTED", `an image of format ${format} cannot be read`);
  const { withRawView } = await import("../hypervisors/qemu/rawView.ts");
  return withRawView(file, { format: known, signal }, work);
}
