/** One QEMU process, described completely; paths are absolute. */
export interface Machine {
  name: string;
  accelerator: "kvm" | "tcg";
  cores: number;
  memoryMib: number;
  /** The qcow2 overlay. */
  disk: string;
  /** What the disk stands on, where its own header does not say it all. */
  below?: BlockNode[] | undefined;
  seed: string;
  volumes: { path: string; serial: string }[];
  nic: { tap: string; mac: string };
  sockets: { qmp: string; status: string; guestAgent: string };
  /** What the first serial port prints is kept here. */
  console: string;
  /** Where it can be typed to as well. */
  consoleSocket?: string | undefined;
  /** User to become once everything is open. */
  user?: string | undefined;
  sandbox: boolean;
  /** A file that the memory is mapped from; without one it is QEMU's own. Not shared: what the guest writes stays its own. */
  memory?: { path: string; shared: boolean } | undefined;
  /** What a guest that goes to other nodes must find there again; without it the best that this node has. */
  pinned?: { type: string; cpu: string } | undefined;
  /** Where a saved state arrives: `unix:PATH`, or `defer` for what is said later. */
  incoming?: string | undefined;
}

/** A node of QEMU's block graph, as `-blockdev` and `blockdev-add` take it. */
export type BlockNode = { driver: string; "node-name": string } & Record<string, unknown>;

/** Pinned: a suspended guest resumes only on the machine type it was suspended on, and this one is known to every supported release. */
export const machineType = "pc-q35-6.2";

/** The name under which saved memory knows the guest's memory; QEMU's own choice where there is no file. */
const memoryName = "pc.ram";

/** Nothing here may be secret: every user of the host can read it in the process list. */
export function commandLine(machine: Machine): string[] {
  return [
    "qemu-system-x86_64",
    ...["-name", `guest=${comma(machine.name)},process=${comma(machine.name.slice(0, 15))}`],
    "-nodefaults",
    "-no-user-config",
    ...["-display", "none"],
    ...["-machine", machineOptions(machine)],
    // without a limit the translation cache alone may outgrow the guest's memory limit
    ...["-accel", machine.accelerator === "kvm" ? "kvm" : "tcg,tb-size=256"],
    ...["-cpu", machine.pinned?.cpu ?? (machine.accelerator === "kvm" ? "host" : "qemu64")],
    ...["-smp", String(machine.cores)],
    ...["-m", memorySize(machine)],
    ...(machine.memory === undefined ? [] : ["-object", memoryFile(machine.memory, memorySize(machine))]),
    ...(machine.sandbox ? ["-sandbox", sandboxRules(machine.user !== undefined)] : []),
    ...(machine.user === undefined ? [] : ["-runas", machine.user]),
    ...socket("qmp", machine.sockets.qmp),
    ...["-mon", "chardev=qmp,mode=control"],
    ...socket("status", machine.sockets.status),
    ...["-mon", "chardev=status,mode=control"],
    ...consoleOf(machine),
    ...disks(machine),
    ...["-netdev", `tap,id=net,ifname=${machine.nic.tap},script=no,downscript=no`],
    ...["-device", `virtio-net-pci,netdev=net,mac=${machine.nic.mac},addr=0x4`],
    ...["-device", "virtio-balloon-pci,free-page-reporting=on,addr=0x5"],
    ...["-device", "virtio-rng-pci,addr=0x6"],
    ...["-device", "virtio-serial-pci,addr=0x7", ...socket("guest-agent", machine.sockets.guestAgent)],
    ...["-device", "virtserialport,chardev=guest-agent,name=org.qemu.guest_agent.0"],
    ...(machine.incoming === undefined ? [] : ["-S", "-incoming", machine.incoming]),
  ];
}

/** Becoming another user needs the very calls that `elevateprivileges=deny` kills. */
export function sandboxRules(changesUser: boolean): string {
  return `on,obsolete=deny,elevateprivileges=${changesUser ? "allow" : "deny"},spawn=deny,resourcecontrol=deny`;
}

function machineOptions({ pinned, memory }: Machine): string {
  const options = `${pinned?.type ?? machineType},hpet=off,vmport=off`;
  return memory === undefined ? options : `${options},memory-backend=${memoryName}`;
}

/**
 * An emulating QEMU before 9.0 loses writes while it migrates: it clears the marks of changed pages and goes on writing
 * through its cache of translations, which sets none. It is right where memory is no multiple of 256 KiB, as it then looks at
 * each page by itself (decision 0020).
 */
function memorySize({ accelerator, memoryMib }: Machine): string {
  return accelerator === "kvm" ? `${String(memoryMib)}M` : `${String(memoryMib * 1024 - 8)}K`;
}

function memoryFile({ path, shared }: { path: string; shared: boolean }, size: string): string {
  const file = `memory-backend-file,id=${memoryName},size=${size},mem-path=${comma(path)},share=${shared ? "on" : "off"}`;
  return `${file},x-use-canonical-path-for-ramblock-id=off`;
}

function consoleOf({ console, consoleSocket }: Machine): string[] {
  const serial = ["-serial", "chardev:console"];
  if (consoleSocket === undefined) return ["-chardev", `file,id=console,path=${comma(console)},append=on`, ...serial];
  const [option = "", where = ""] = socket("console", consoleSocket);
  return [option, `${where},logfile=${comma(console)},logappend=on`, ...serial];
}

function disks(machine: Machine): string[] {
  const below = machine.below ?? [];
  const top = below.at(-1);
  const file = (path: string) => ({ driver: "file", filename: path });
  return [
    ...below.flatMap((node) => blockdev(node)),
    ...blockdev({
      driver: "qcow2",
      "node-name": "disk",
      discard: "unmap",
      "detect-zeroes": "unmap",
      file: { ...file(machine.disk), discard: "unmap" },
      ...(top === undefined ? {} : { backing: top["node-name"] }),
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
