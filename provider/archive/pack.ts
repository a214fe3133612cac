import { Readable } from "node:stream";
import { readTar } from "./read.ts";
import type { EntryType, TarEntry } from "./tar.ts";
import { walk, type Inode, type Node, type Source } from "./tree.ts";
import { endOfTar, headerOf, paddingOf } from "./write.ts";

/** The tree that `readTree` made of these sources, as one tar; the same sources give the same bytes. */
export function packTree(root: Node, sources: readonly Source[]): Readable {
  const nodes = [...walk(root)].map(({ path, node }) => ({ path, inode: node.inode }));
  return packNodes(root.inode.source < 0 ? nodes : [{ path: ".", inode: root.inode }, ...nodes], { sources, removed: [] });
}

/**
 * Some nodes of such a tree, parents first, and names that `.wh.` entries remove. Directories come first and links last;
 * contents are read from the sources once more, in the order in which they are there.
 */
export function packNodes(nodes: PathNode[], from: { sources: readonly Source[]; removed: string[] }): Readable {
  return Readable.from(bytesOf(nodes, from), { objectMode: false });
}

export interface PathNode {
  path: string;
  inode: Inode;
}

async function* bytesOf(
  nodes: PathNode[],
  { sources, removed }: { sources: readonly Source[]; removed: string[] },
): AsyncGenerator<Buffer> {
  const { first, links } = byName(nodes);
  const entries = (wanted: (type: EntryType) => boolean): TarEntry[] =>
    first.filter(({ inode }) => wanted(inode.entry.type)).map(({ path, inode }) => ({ ...inode.entry, path }));
  // a directory's time changes with whatever is unpacked into it later
  for (const entry of entries((type) => type === "directory")) yield headerOf({ ...entry, mtime: 0 });
  for (const path of removed) yield headerOf(whiteoutOf(path));
  for (const entry of entries((type) => type !== "directory" && type !== "file")) yield headerOf(entry);
  for (const [index, source] of sources.entries()) yield* contentsOf(source, placesIn(index, first));
  for (const { path, inode, target } of links) yield headerOf({ ...inode.entry, path, type: "link", size: 0, target, xattrs: {} });
  yield endOfTar();
}

/** The first name of each file, and the others as links to it, grouped by file. */
function byName(nodes: PathNode[]): { first: PathNode[]; links: (PathNode & { target: string })[] } {
  const first: PathNode[] = [];
  const known = new Map<Inode, { path: string; others: (PathNode & { target: string })[] }>();
  for (const node of nodes) {
    const earlier = known.get(node.inode);
    if (earlier !== undefined) earlier.others.push({ ...node, target: earlier.path });
    else {
      first.push(node);
      if (node.inode.names > 1) known.set(node.inode, { path: node.path, others: [] });
    }
  }
  return { first, links: [...known.values()].flatMap(({ others }) => others) };
}

/** Which file a source has at which position. */
function placesIn(index: number, first: PathNode[]): Map<number, PathNode> {
  const files = first.filter(({ inode }) => inode.source === index && inode.entry.type === "file");
  return new Map(files.map((node) => [node.inode.position, node]));
}

async function* contentsOf(source: Source, wanted: Map<number, PathNode>): AsyncGenerator<Buffer> {
  if (wanted.size === 0) return;
  let position = 0;
  for await (const { content } of readTar(source.open())) {
    const node = wanted.get(position);
    position += 1;
    if (node === undefined) continue;
    yield headerOf({ ...node.inode.entry, path: node.path });
    yield* content;
    yield paddingOf(node.inode.entry.size);
  }
}

function whiteoutOf(path: string): TarEntry {
  const slash = path.lastIndexOf("/") + 1;
  const name = `${path.slice(0, slash)}.wh.${path.slice(slash)}`;
  return { path: name, type: "file", mode: 0, uid: 0, gid: 0, mtime: 0, size: 0, target: "", major: 0, minor: 0, xattrs: {} };
}
