import { closeSync, ftruncateSync, mkdirSync, openSync, readdirSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { CloudletError } from "../../provider/core/errors.ts";
import { run } from "../../test/lab/run.ts";
import { initramfsAround } from "./initramfs.ts";
import { trimKernel, trimModule } from "./kernel.ts";
import { epoch, fillUserland, guestFile, install, stopClock, type Recipe } from "./userland.ts";

const mebibyte = 1024 * 1024;
const diskSize = 256 * mebibyte;
const partitionStart = mebibyte;
const fileSystemId = "5a1f0c6e-3d5b-4f0e-9c55-0c0de1e70001";

// in the order in which they need each other
const bootModules = [
  "drivers/virtio/virtio_ring",
  "drivers/virtio/virtio",
  "drivers/virtio/virtio_pci_legacy_dev",
  "drivers/virtio/virtio_pci_modern_dev",
  "drivers/virtio/virtio_pci",
  "drivers/block/virtio_blk",
];
const laterModules = [
  "net/core/failover",
  "drivers/net/net_failover",
  "drivers/net/virtio_net",
  "drivers/virtio/virtio_balloon",
  "drivers/char/virtio_console",
  "drivers/cdrom/cdrom",
  "fs/isofs/isofs",
  "drivers/input/evdev",
  "drivers/acpi/button",
];
const libraries = [
  "libc.so.6",
  "libm.so.6",
  "libglib-2.0.so.0",
  "libgmodule-2.0.so.0",
  "libpcre2-8.so.0",
  "libudev.so.1",
  "libnuma.so.1",
  "liburing.so.2",
  "libe2p.so.2",
  "libext2fs.so.2",
  "libcom_err.so.2",
  "libblkid.so.1",
  "libuuid.so.1",
];

/** A disk that boots by itself under a PC BIOS: GRUB before the first partition, everything else in that partition's ext4. */
export async function buildVm({ packages, work, target }: Recipe): Promise<void> {
  const root = join(work, "vm");
  await fillUserland(root, packages);
  fillVm(root, packages);
  mkdirSync(join(root, "boot"));
  await trimKernel(findKernel(packages), { packages, work, target: join(root, "boot/vmlinuz") });
  writeInitramfs(root);
  const disk = join(work, "disk.raw");
  await makeFileSystem(root, { work, disk });
  await makeBootable(packages, { work, disk });
  // one coroutine keeps the order of clusters, and so the bytes, the same
  await run(["qemu-img", "convert", "-m", "1", "-c", "-O", "qcow2", "-o", "compression_type=zstd", disk, target], {
    timeoutMillis: 300_000,
  });
}

function fillVm(root: string, packages: string): void {
  guestFile(root, "rcS.vm", { path: "etc/init.d/rcS", mode: 0o755 });
  guestFile(root, "unmount", { path: "etc/init.d/unmount", mode: 0o755 });
  guestFile(root, "shutdown", { path: "usr/sbin/shutdown", mode: 0o755 });
  guestFile(root, "hostname", { path: "etc/hostname", mode: 0o644 });
  guestFile(root, "power", { path: "etc/acpi/PWRF/00000080", mode: 0o755 });
  install(join(root, "usr/sbin/shutdown"), join(root, "sbin/shutdown"), 0o755);
  install(join(packages, "usr/sbin/qemu-ga"), join(root, "usr/sbin/qemu-ga"), 0o755);
  install(join(packages, "sbin/resize2fs"), join(root, "usr/sbin/resize2fs"), 0o755);
  install(join(packages, "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"), join(root, "lib64/ld-linux-x86-64.so.2"), 0o755);
  for (const library of libraries) install(findLibrary(packages, library), join(root, "lib/x86_64-linux-gnu", library), 0o644);
  const modules = join(root, "lib/modules");
  mkdirSync(modules, { recursive: true });
  for (const module of [...bootModules, ...laterModules]) writeFileSync(join(modules, fileOf(module)), readModule(packages, module));
  writeFileSync(join(modules, "order"), laterModules.map((it) => `${fileOf(it)}\n`).join(""));
  writeFileSync(join(root, "etc/fstab"), "");
  writeFileSync(join(root, "var/lib/partition"), `${(diskSize - partitionStart) / 512}\n`);
}

function findLibrary(packages: string, name: string): string {
  const found = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].find((folder) => readdirSync(join(packages, folder)).includes(name));
  if (found === undefined) throw new CloudletError("FAILED", `the packages hold no ${name}`);
  return join(packages, found, name);
}

function readModule(packages: string, module: string): Buffer {
  const [release] = readdirSync(join(packages, "lib/modules"));
  return trimModule(readFileSync(join(packages, "lib/modules", release ?? "", "kernel", `${module}.ko`)));
}

function fileOf(module: string): string {
  return `${module.split("/").at(-1) ?? ""}.ko`;
}

function findKernel(packages: string): string {
  const kernel = readdirSync(join(packages, "boot")).find((it) => it.startsWith("vmlinuz-"));
  if (kernel === undefined) throw new CloudletError("FAILED", "the packages hold no kernel");
  return join(packages, "boot", kernel);
}

function writeInitramfs(root: string): void {
  const read = (path: string) => readFileSync(join(root, path));
  const modules = bootModules.map((it) => ({ name: `lib/modules/${fileOf(it)}`, content: read(`lib/modules/${fileOf(it)}`) }));
  const { head, tail } = initramfsAround({ name: "bin/busybox", size: read("bin/busybox").length }, [
    ...["bin", "dev", "lib", "lib/modules", "proc", "root", "sys"].map((name) => ({ name })),
    ...modules,
    { name: "lib/modules/order", content: Buffer.from(bootModules.map((it) => `${fileOf(it)}\n`).join("")) },
    { name: "init", content: readFileSync(join(import.meta.dirname, "guest/initramfs")) },
  ]);
  writeFileSync(join(root, "boot/initrd.head"), head);
  writeFileSync(join(root, "boot/initrd.tail"), tail);
}

async function makeFileSystem(root: string, { work, disk }: { work: string; disk: string }): Promise<void> {
  stopClock(root);
  const kib = (diskSize - partitionStart) / 1024;
  const features =
    "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize";
  const extended = `hash_seed=${fileSystemId},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,resize=16777216,offset=${partitionStart}`;
  const shape = [
    "-b",
    "4096",
    "-I",
    "256",
    "-N",
    "8192",
    "-J",
    "size=4",
    "-m",
    "0",
    "-U",
    fileSystemId,
    "-L",
    "cloudlet",
    "-O",
    features,
    "-E",
    extended,
  ];
  const fd = openSync(disk, "w");
  ftruncateSync(fd, diskSize);
  closeSync(fd);
  const env = { ...process.env, E2FSPROGS_FAKE_TIME: String(epoch), SOURCE_DATE_EPOCH: String(epoch) };
  await run(["mke2fs", "-q", "-F", "-t", "ext4", ...shape, "-d", root, disk, `${kib}k`], { env });
  // mke2fs takes change and access times from the source files
  const names = ["/", ...readdirSync(root, { recursive: true, encoding: "utf8" }).map((it) => `/${it}`), "/lost+found"];
  const fields = ["atime", "ctime", "mtime", "crtime"].flatMap((it) => [`${it} @${epoch}`, `${it}_extra 0`]);
  const commands = names.sort().flatMap((name) => fields.map((field) => `set_inode_field "${name}" ${field}`));
  writeFileSync(join(work, "times"), `${commands.join("\n")}\n`);
  await run(["debugfs", "-w", "-f", join(work, "times"), `${disk}?offset=${partitionStart}`], { env });
}

/** `boot.img` loads the sectors after it, where `core.img` stands: no installation needed. */
async function makeBootable(packages: string, { work, disk }: { work: string; disk: string }): Promise<void> {
  const modules = join(packages, "usr/lib/grub/i386-pc");
  writeFileSync(join(work, "grub.cfg"), grubConfiguration);
  const core = join(work, "core.img");
  const wanted = ["biosdisk", "part_msdos", "ext2", "linux", "boot"];
  await run([
    join(packages, "usr/bin/grub-mkimage"),
    "-O",
    "i386-pc",
    "-d",
    modules,
    "-p",
    "/boot/grub",
    "-c",
    join(work, "grub.cfg"),
    "-o",
    core,
    ...wanted,
  ]);
  const head = Buffer.alloc(partitionStart);
  readFileSync(join(modules, "boot.img")).copy(head, 0, 0, 440);
  head.writeUInt32LE(0xc10d1e70, 440);
  // one active Linux partition up to the disk's end
  head.set([0x80, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff], 446);
  head.writeUInt32LE(partitionStart / 512, 454);
  head.writeUInt32LE((diskSize - partitionStart) / 512, 458);
  head.set([0x55, 0xaa], 510);
  const image = readFileSync(core);
  if (image.length > partitionStart - 512)
    throw new CloudletError("BUG", `GRUB is ${image.length} bytes and does not fit before the partition`);
  image.copy(head, 512);
  const fd = openSync(disk, "r+");
  writeSync(fd, head, 0, head.length, 0);
  closeSync(fd);
}

const grubConfiguration = `set root=(hd0,msdos1)
linux /boot/vmlinuz root=/dev/vda1 rw console=ttyS0 loglevel=3 panic=5 nokaslr mitigations=off tsc=reliable no_timer_check
initrd /boot/initrd.head /bin/busybox /boot/initrd.tail
boot
`;
