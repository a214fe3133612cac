import { Readable } from "node:stream";
import { readTar } from "./read.ts";
import type { TarEntry } from "./tar.ts";
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
export function packNodes(nodes: { path: string; inode: Inode }[], from: { sources: readonly Source[]; removed: string[] }): Readable {
  return Readable.from(bytesOf(nodes, from), { objectMode: false });
}

async function* bytesOf(
  nodes: { path: string; inode: Inode }[],
  { sources, removed }: { sources: readonly Source[]; removed: string[] },
): AsyncGenerator<Buffer> {
  const paths = new Map<Inode, string[]>();
  for (const { path, inode } of nodes) paths.set(inode, [...(paths.get(inode) ?? []), path]);
  const entries = [...paths].map(([inode, [path = ""]]) => ({ ...inode.entry, path }));
  // a directory's time changes with whatever is unpacked into it later
  for (const entry of entries) if (entry.type === "directory") yield headerOf({ ...entry, mtime: 0 });
  for (const path of removed) yield headerOf(whiteoutOf(path));
  for (const entry of entries) if (entry.type !== "directory" && entry.type !== "file") yield headerOf(entry);
  for (const [index, source] of sources.entries()) yield* contentsOf(source, placesIn(index, paths));
  for (const [inode, [path = "", ...links]] of paths)
    for (const link of links) yield headerOf({ ...inode.entry, path: link, type: "link", size: 0, target: path, xattrs: {} });
  yield endOfTar();
}

/** Which file a source has at which position. */
function placesIn(index: number, paths: Map<Inode, string[]>): Map<number, TarEntry> {
  const files = [...paths].filter(([inode]) => inode.source === index && inode.entry.type === "file");
  return new Map(files.map(([inode, [path = ""]]) => [inode.position, { ...inode.entry, path }]));
}

async function* contentsOf(source: Source, wanted: Map<number, TarEntry>): AsyncGenerator<Buffer> {
  if (wanted.size === 0) return;
  let position = 0;
  for await (const { content } of readTar(source.open())) {
    const entry = wanted.get(position);
    position += 1;
    if (entry === undefined) continue;
    yield headerOf(entry);
    yield* content;
    yield paddingOf(entry.size);
  }
}

function whiteoutOf(path: string): TarEntry {
  const slash = path.lastIndexOf("/") + 1;
  const name = `${path.slice(0, slash)}.wh.${path.slice(slash)}`;
  return { path: name, type: "file", mode: 0, uid: 0, gid: 0, mtime: 0, size: 0, target: "", major: 0, minor: 0, xattrs: {} };
}
