import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { CloudletError } from "../../provider/core/errors.ts";
import { run } from "../../test/lab/run.ts";

const magic = Buffer.from("02214c18", "hex");

/**
 * Debian's kernel without what a guest never reads: type information for BPF, and the table for loading it at random
 * addresses (so it needs `nokaslr`). It stays LZ4, which unpacks fast in an emulated processor and which the disk's own
 * compression shrinks further; XZ is a megabyte smaller and takes five seconds.
 */
export async function trimKernel(source: string, to: { packages: string; work: string; target: string }): Promise<void> {
  const image = readFileSync(source);
  // a loader puts a kernel that cannot be moved where it belongs at once; GRUB copies a movable one, byte by byte
  image[0x234] = 0;
  const start = ((image[0x1f1] ?? 4) + 1) * 512 + image.readUInt32LE(0x248);
  const payload = image.subarray(start, start + image.readUInt32LE(0x24c));
  if (!payload.subarray(0, 4).equals(magic)) throw new CloudletError("UNSUPPORTED", `${source} is not compressed with LZ4`);
  const [packed, plain] = [join(to.work, "kernel.lz4"), join(to.work, "kernel.elf")];
  // the last four bytes are the size of what comes out
  writeFileSync(packed, payload.subarray(0, -4));
  const library = join(to.packages, "usr/lib/x86_64-linux-gnu");
  const lz4 = (...args: string[]) =>
    run([join(to.packages, "usr/bin/lz4"), "-q", "-f", ...args], { env: { ...process.env, LD_LIBRARY_PATH: library } });
  await lz4("-d", packed, plain);
  writeFileSync(plain, withoutTypesAndRelocations(readFileSync(plain)));
  await lz4("-l", "-12", plain, packed);
  const smaller = readFileSync(packed);
  const room = payload.length - 4 - smaller.length;
  if (room < 0) throw new CloudletError("BUG", "the trimmed kernel is larger than Debian's");
  // it is unpacked in place, over itself: it must still end where it did, and repeated magic numbers are skipped
  const words = room >> 2;
  payload.fill(magic, 0, words * 4);
  smaller.copy(payload, words * 4);
  payload.fill(0, words * 4 + smaller.length, payload.length - 4);
  writeFileSync(to.target, image);
}

/** A module without signature and type information, whose checks take longer than all the rest of loading it. */
export function trimModule(module: Buffer): Buffer {
  const names = readNames(module);
  const at = module.indexOf("\0.BTF\0", names.from);
  if (at >= 0 && at < names.to) module.write(".off", at + 1);
  const trailer = "~Module signature appended~\n";
  if (module.toString("latin1", module.length - trailer.length) !== trailer) return module;
  const described = module.length - trailer.length - 12;
  return module.subarray(0, described - module.readUInt32BE(described + 8));
}

function withoutTypesAndRelocations(elf: Buffer): Buffer {
  const names = readNames(elf);
  let end = 0;
  for (const { name, type, offset, size } of sections(elf)) {
    const noBits = 8;
    if (type !== noBits) end = Math.max(end, offset + size);
    if (elf.toString("latin1", names.from + name, names.from + name + 5) === ".BTF\0") elf.fill(0, offset, offset + size);
  }
  const table = Number(elf.readBigUInt64LE(0x28)) + 64 * elf.readUInt16LE(0x3c);
  return elf.fill(0, Math.max(end, table));
}

function readNames(elf: Buffer): { from: number; to: number } {
  const names = sections(elf)[elf.readUInt16LE(0x3e)];
  if (names === undefined) throw new CloudletError("UNSUPPORTED", "an ELF file names none of its sections");
  return { from: names.offset, to: names.offset + names.size };
}

function sections(elf: Buffer): { name: number; type: number; offset: number; size: number }[] {
  const table = Number(elf.readBigUInt64LE(0x28));
  return Array.from({ length: elf.readUInt16LE(0x3c) }, (_, index) => {
    const at = table + 64 * index;
    return {
      name: elf.readUInt32LE(at),
      type: elf.readUInt32LE(at + 4),
      offset: Number(elf.readBigUInt64LE(at + 24)),
      size: Number(elf.readBigUInt64LE(at + 32)),
    };
  });
}
