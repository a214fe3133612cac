/*
 * Tar archives of root file systems. tar-stream reads extended attributes as text, which damages the capabilities of
 * programs; here every name and value is kept byte by byte. Names are strings of one byte per character ("latin1").
 */

export type EntryType = "file" | "directory" | "symlink" | "link" | "character" | "block" | "fifo";

export interface TarEntry {
  path: string;
  type: EntryType;
  /** Permission bits, with set-user-id and the like. */
  mode: number;
  uid: number;
  gid: number;
  /** Seconds. */
  mtime: number;
  /** Of a file's content; 0 for everything else. */
  size: number;
  /** Of `symlink` and `link`. */
  target: string;
  major: number;
  minor: number;
  xattrs: Readonly<Record<string, string>>;
}

export const blockBytes = 512;

export const typeFlags: Readonly<Record<EntryType, string>> = {
  file: "0",
  link: "1",
  symlink: "2",
  character: "3",
  block: "4",
  directory: "5",
  fifo: "6",
};

/** A name as a reader of messages expects it. */
export function shown(name: string): string {
  return Buffer.from(name, "latin1").toString("utf8");
}

/** All that two equal entries have in common, wherever they are; times do not count. */
export function attributesOf({ type, mode, uid, gid, size, target, major, minor, xattrs }: TarEntry): string {
  // nobody can change the mode of a symbolic link, and tools report it differently
  const permissions = type === "symlink" ? 0 : mode;
  const sorted = Object.entries(xattrs).sort(([x], [y]) => (x < y ? -1 : 1));
  return JSON.stringify([type, permissions, uid, gid, size, target, major, minor, sorted]);
}
