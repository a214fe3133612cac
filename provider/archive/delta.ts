import type { Readable } from "node:stream";
import { CloudletError } from "../core/errors.ts";
import { packNodes } from "./pack.ts";
import { shown } from "./tar.ts";
import { readTree, walk, type Inode, type Node, type Source } from "./tree.ts";

/**
 * What makes `below` into `above`: whatever is new or changed whole, and a `.wh.` entry for each thing that is gone, as in
 * a layer of a container image. A file of which only the time differs is the same.
 */
export async function deltaOf(below: Source, above: Source): Promise<Readable> {
  const [before, after] = [await readTree([{ ...below, contents: true }]), await readTree([{ ...above, contents: true }])];
  const [old, now] = [pathsOf(before), pathsOf(after)];
  const oldGroups = groupsOf(before);
  const nowGroups = groupsOf(after);
  const changed = [...now].filter(([path, inode]) => {
    const was = old.get(path);
    return was === undefined || !same(was, inode) || oldGroups.get(was) !== nowGroups.get(inode);
  });
  // a link's content comes with the first name of its file, so a group travels whole
  const inodes = new Set(changed.map(([, inode]) => inode));
  const nodes = [...now].filter(([, inode]) => inodes.has(inode)).map(([path, inode]) => ({ path, inode }));
  const root = before.inode.source >= 0 && after.inode.source >= 0 && !same(before.inode, after.inode);
  const all = root ? [{ path: ".", inode: after.inode }, ...nodes] : nodes;
  const strange = nodes.find(({ path }) => /(^|\/)\.wh\./.test(path));
  if (strange !== undefined) {
    throw new CloudletError("REFUSED", `${above.name} has a file ${shown(strange.path)}: such names mean removal in a delta`, {
      fix: "give the file another name",
    });
  }
  return packNodes(all, { sources: [above], removed: goneFrom(old, now) });
}

function pathsOf(root: Node): Map<string, Inode> {
  return new Map([...walk(root)].map(({ path, node }) => [path, node.inode]));
}

/** Each file's names, as one text. */
function groupsOf(root: Node): Map<Inode, string> {
  const groups = new Map<Inode, string>();
  for (const { path, node } of walk(root)) groups.set(node.inode, `${groups.get(node.inode) ?? ""}${path}\0`);
  return groups;
}

/** What is gone, without what lies below something that is gone or is no directory any more. */
function goneFrom(old: Map<string, Inode>, now: Map<string, Inode>): string[] {
  return [...old.keys()].filter((path) => {
    if (now.has(path)) return false;
    const slash = path.lastIndexOf("/");
    return slash < 0 || now.get(path.slice(0, slash))?.entry.type === "directory";
  });
}

function same(a: Inode, b: Inode): boolean {
  return a.digest === b.digest && describe(a) === describe(b);
}

function describe({ entry }: Inode): string {
  const { type, uid, gid, size, target, major, minor } = entry;
  // nobody can change the mode of a symbolic link, and tools report it differently
  const mode = type === "symlink" ? 0 : entry.mode;
  const xattrs = Object.entries(entry.xattrs).sort(([x], [y]) => (x < y ? -1 : 1));
  return JSON.stringify([type, mode, uid, gid, size, target, major, minor, xattrs]);
}
