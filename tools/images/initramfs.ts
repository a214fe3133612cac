/** A file or a directory of an initramfs. */
export interface Entry {
  name: string;
  content?: Buffer;
}

/**
 * An initramfs in the kernel's `newc` format whose last file is left out: the boot loader reads head, that file and tail
 * one after the other, so a file of the root file system need not be on the disk twice.
 */
export function initramfsAround(last: { name: string; size: number }, entries: readonly Entry[]): { head: Buffer; tail: Buffer } {
  const all = entries.flatMap(({ name, content }, index) =>
    content === undefined
      ? [header(name, { inode: index + 1, mode: 0o040755, size: 0 })]
      : [header(name, { inode: index + 1, mode: 0o100755, size: content.length }), padded(content)],
  );
  return {
    head: Buffer.concat([...all, header(last.name, { inode: entries.length + 1, mode: 0o100755, size: last.size })]),
    tail: header("TRAILER!!!", { inode: 0, mode: 0, size: 0 }),
  };
}

function header(name: string, { inode, mode, size }: { inode: number; mode: number; size: number }): Buffer {
  // inode, mode, owner, group, links, time, size, device, device of a special file, length of the name, check
  const fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.length + 1, 0];
  return padded(Buffer.from(`070701${fields.map((it) => it.toString(16).padStart(8, "0")).join("")}${name}\0`));
}

function padded(content: Buffer): Buffer {
  return Buffer.concat([content, Buffer.alloc(-content.length & 3)]);
}
