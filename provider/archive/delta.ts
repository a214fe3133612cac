import type { Readable } from "node:stream";
import { CloudletError } from "../core/errors.ts";
import { packNodes, type PathNode } from "./pack.ts";
import { shown } from "./tar.ts";
import { namesIn, readTree, walk, type Inode, type Node, type Source } from "./tree.ts";

/**
 * What makes `below` into `above`: whatever is new or changed whole, and a `.wh.` entry for each thing that is gone, as in
 * a layer of a container image. A file of which only the time differs is the same.
 */
export async function deltaOf(below: Source, above: Source): Promise<Readable> {
  const [before, after] = [await readTree([{ ...below, contents: true }]), await readTree([{ ...above, contents: true }])];
  const groups = { before: groupsOf(before), after: groupsOf(after) };
  const found: Found = { changed: new Set(), removed: [] };
  compare({ was: before, now: after }, { path: "", groups, found });
  // a link's content comes with the first name of its file, so a group travels whole
  const nodes: PathNode[] = [];
  for (const { path, node } of walk(after)) if (found.changed.has(node.inode)) nodes.push({ path, inode: node.inode });
  if (before.inode.source >= 0 && after.inode.source >= 0 && !same(before.inode, after.inode))
    nodes.unshift({ path: ".", inode: after.inode });
  const strange = nodes.find(({ path }) => /(^|\/)\.wh\./.test(path));
  if (strange !== undefined) {
    throw new CloudletError("REFUSED", `${above.name} has a file ${shown(strange.path)}: such names mean removal in a delta`, {
      fix: "give the file another name",
    });
  }
  return packNodes(nodes, { sources: [above], removed: found.removed });
}

/** Names of each file that has several, as one text. */
type Groups = Map<Inode, string>;

function groupsOf(root: Node): Groups {
  const groups: Groups = new Map();
  for (const { path, node } of walk(root)) {
    const { inode } = node;
    if (inode.names > 1) groups.set(inode, `${groups.get(inode) ?? ""}${path}\0`);
  }
  return groups;
}

interface Found {
  changed: Set<Inode>;
  /** What is gone, without what lies below something that is gone or is no directory any more. */
  removed: string[];
}

function compare(
  { was, now }: { was: Node | undefined; now: Node },
  { path, groups, found }: { path: string; groups: { before: Groups; after: Groups }; found: Found },
): void {
  const at = (name: string): string => (path === "" ? name : `${path}/${name}`);
  for (const name of namesIn(now)) {
    const [old, node] = [was?.children?.get(name), now.children?.get(name)];
    if (node === undefined) continue;
    const stays = old !== undefined && same(old.inode, node.inode) && groups.before.get(old.inode) === groups.after.get(node.inode);
    if (!stays) found.changed.add(node.inode);
    compare({ was: old, now: node }, { path: at(name), groups, found });
  }
  if (now.inode.entry.type !== "directory" || was === undefined) return;
  for (const name of namesIn(was)) if (now.children?.has(name) !== true) found.removed.push(at(name));
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
