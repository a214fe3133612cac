import type { Readable } from "node:stream";
import { CloudletError } from "../core/errors.ts";
import type { FileTree, Node, PathNode } from "./fileTree.ts";
import { packNodes } from "./pack.ts";
import { attributesOf, shown } from "./tar.ts";
import { readTree, type Source } from "./tree.ts";

/**
 * What makes `below` into `above`: whatever is new or changed whole, and a `.wh.` entry for each thing that is gone, as in
 * a layer of a container image. A file of which only the time differs is the same.
 */
export async function deltaOf(below: Source, above: Source): Promise<Readable> {
  const [before, after] = [await readTree([{ ...below, contents: true }]), await readTree([{ ...above, contents: true }])];
  const sides: Sides = { before, after, groupsBefore: groupsOf(before), groupsAfter: groupsOf(after) };
  const found: Found = { changed: new Set(), removed: [] };
  compare(sides, { was: before.root, now: after.root, path: "" }, found);
  // a link's content comes with the first name of its file, so a group travels whole
  const nodes: PathNode[] = [];
  for (const { path, node } of after.walk()) if (found.changed.has(node)) nodes.push({ path, node });
  if (before.source(before.root) >= 0 && after.source(after.root) >= 0 && !same(sides, before.root, after.root))
    nodes.unshift({ path: ".", node: after.root });
  const strange = nodes.find(({ path }) => /(^|\/)\.wh\./.test(path));
  if (strange !== undefined) {
    throw new CloudletError("REFUSED", `${above.name} has a file ${shown(strange.path)}: such names mean removal in a delta`, {
      fix: "give the file another name",
    });
  }
  return packNodes(after, nodes, { sources: [above], removed: found.removed });
}

/** Names of each file that has several, as one text. */
type Groups = Map<Node, string>;

function groupsOf(tree: FileTree): Groups {
  const groups: Groups = new Map();
  for (const { path, node } of tree.walk()) if (tree.names(node) > 1) groups.set(node, `${groups.get(node) ?? ""}${path}\0`);
  return groups;
}

interface Found {
  changed: Set<Node>;
  /** What is gone, without what lies below something that is gone or is no directory any more. */
  removed: string[];
}

interface Sides {
  before: FileTree;
  after: FileTree;
  groupsBefore: Groups;
  groupsAfter: Groups;
}

function compare(sides: Sides, { was, now, path }: { was: Node | undefined; now: Node; path: string }, found: Found): void {
  const { before, after, groupsBefore, groupsAfter } = sides;
  const at = (name: string): string => (path === "" ? name : `${path}/${name}`);
  for (const name of after.namesIn(now)) {
    const [old, node] = [was === undefined ? undefined : before.child(was, name), after.child(now, name)];
    if (node === undefined) continue;
    const stays = old !== undefined && same(sides, old, node) && groupsBefore.get(old) === groupsAfter.get(node);
    if (!stays) found.changed.add(node);
    compare(sides, { was: old, now: node, path: at(name) }, found);
  }
  if (after.type(now) !== "directory" || was === undefined) return;
  for (const name of before.namesIn(was)) if (after.child(now, name) === undefined) found.removed.push(at(name));
}

function same({ before, after }: Sides, old: Node, now: Node): boolean {
  const [was, is] = [before.entry(old), after.entry(now)];
  if (was === undefined || is === undefined) return was === is && before.digest(old).equals(after.digest(now));
  return attributesOf(was) === attributesOf(is);
}
