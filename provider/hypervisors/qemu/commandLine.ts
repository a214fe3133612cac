/** One QEMU process, described completely; paths are absolute. */
export interface Machine {
  name: string;
  accelerator: "kvm" | "tcg";
  cores: number;
  memoryMib: number;
  /** The qcow2 overlay. */
  disk: string;
  seed: string;
  volumes: { path: string; serial: string }[];
  nic: { tap: string; mac: string };
  sockets: { qmp: string; status: string; guestAgent: string };
  console: string;
  /** User to become once everything is open. */
  user?: string | undefined;
  sandbox: boolean;
  /** Socket on which a suspended guest's state arrives. */
  incoming?: string | undefined;
}

/** Pinned: a suspended guest resumes only on the machine type it was suspended on, and this one is known to every supported release. */
export const machineType = "pc-q35-6.2";

/** Nothing here may be secret: every user of the host can read it in the process list. */
export function commandLine(machine: Machine): string[] {
  return [
    "qemu-system-x86_64",
    ...["-name", `guest=${comma(machine.name)},process=${comma(machine.name.slice(0, 15))}`],
    "-nodefaults",
    "-no-user-config",
    ...["-display", "none"],
    ...["-machine", `${machineType},hpet=off,vmport=off`],
    // without a limit the translation cache alone may outgrow the guest's memory limit
    ...["-accel", machine.accelerator === "kvm" ? "kvm" : "tcg,tb-size=256"],
    ...["-cpu", machine.accelerator === "kvm" ? "host" : "qemu64"],
    ...["-smp", String(machine.cores)],
    ...["-m", `${String(machine.memoryMib)}M`],
    ...(machine.sandbox ? ["-sandbox", sandboxRules(machine.user !== undefined)] : []),
    ...(machine.user === undefined ? [] : ["-runas", machine.user]),
    ...socket("qmp", machine.sockets.qmp),
    ...["-mon", "chardev=qmp,mode=control"],
    ...socket("status", machine.sockets.status),
    ...["-mon", "chardev=status,mode=control"],
    ...["-chardev", `file,id=console,path=${comma(machine.console)},append=on`, "-serial", "chardev:console"],
    ...disks(machine),
    ...["-netdev", `tap,id=net,ifname=${machine.nic.tap},script=no,downscript=no`],
    ...["-device", `virtio-net-pci,netdev=net,mac=${machine.nic.mac},addr=0x4`],
    ...["-device", "virtio-balloon-pci,free-page-reporting=on,addr=0x5"],
    ...["-device", "virtio-rng-pci,addr=0x6"],
    ...["-device", "virtio-serial-pci,addr=0x7", ...socket("guest-agent", machine.sockets.guestAgent)],
    ...["-device", "virtserialport,chardev=guest-agent,name=org.qemu.guest_agent.0"],
    ...(machine.incoming === undefined ? [] : ["-S", "-incoming", `unix:${machine.incoming}`]),
  ];
}

/** Becoming another user needs the very calls that `elevateprivileges=deny` kills. */
export function sandboxRules(changesUser: boolean): string {
  return `on,obsolete=deny,elevateprivileges=${changesUser ? "allow" : "deny"},spawn=deny,resourcecontrol=deny`;
}

function disks(machine: Machine): string[] {
  const file = (path: string) => ({ driver: "file", filename: path });
  return [
    ...blockdev({
      driver: "qcow2",
      "node-name": "disk",
      discard: "unmap",
      "detect-zeroes": "unmap",
      file: { ...file(machine.disk), discard: "unmap" },
    }),
    ...["-device", "virtio-blk-pci,drive=disk,serial=root,bootindex=1,addr=0x2"],
    ...blockdev({ driver: "raw", "node-name": "seed", "read-only": true, file: file(machine.seed) }),
    ...["-device", "virtio-blk-pci,drive=seed,serial=cidata,addr=0x3"],
    ...machine.volumes.flatMap(({ path, serial }, index) => [
      ...blockdev({ driver: "raw", "node-name": `volume${String(index)}`, discard: "unmap", file: { ...file(path), discard: "unmap" } }),
      ...["-device", `virtio-blk-pci,drive=volume${String(index)},serial=${serial},addr=0x${(8 + index).toString(16)}`],
    ]),
  ];
}

function blockdev(node: Record<string, unknown>): string[] {
  return ["-blockdev", JSON.stringify(node)];
}

function socket(id: string, path: string): string[] {
  return ["-chardev", `socket,id=${id},path=${comma(path)},server=on,wait=off`];
}

/** QEMU's option lists take a doubled comma for a comma. */
function comma(text: string): string {
  return text.replaceAll(",", ",,");
}
