import { Readable } from "node:stream";
import { CloudletError } from "../core/errors.ts";
import type { FileTree, Node, PathNode } from "./fileTree.ts";
import { readTar } from "./read.ts";
import type { TarEntry } from "./tar.ts";
import type { Source } from "./tree.ts";
import { endOfTar, headerOf, paddingOf } from "./write.ts";

/** The tree that `readTree` made of these sources, as one tar; the same sources give the same bytes. */
export function packTree(tree: FileTree, sources: readonly Source[]): Readable {
  // no array, as there may be hundreds of thousands
  return packNodes(tree, { [Symbol.iterator]: () => allOf(tree) }, { sources, removed: [] });
}

/**
 * Some nodes of such a tree, parents first, and names that `.wh.` entries remove. Directories come first and links last;
 * contents are read from the sources once more, in the order in which they are there.
 */
export function packNodes(tree: FileTree, nodes: Iterable<PathNode>, from: { sources: readonly Source[]; removed: string[] }): Readable {
  return Readable.from(inPieces(bytesOf(tree, nodes, from)), { objectMode: false });
}

const pieceBytes = 128 * 1024;

/** A chunk for each header and small file would cost a stream more than its content. */
async function* inPieces(chunks: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let [piece, bytes]: [Buffer[], number] = [[], 0];
  for await (const chunk of chunks) {
    piece.push(chunk);
    bytes += chunk.length;
    if (bytes < pieceBytes) continue;
    yield Buffer.concat(piece);
    [piece, bytes] = [[], 0];
  }
  yield Buffer.concat(piece);
}

function* allOf(tree: FileTree): Generator<PathNode> {
  if (tree.source(tree.root) >= 0) yield { path: ".", node: tree.root };
  yield* tree.walk();
}

async function* bytesOf(
  tree: FileTree,
  nodes: Iterable<PathNode>,
  { sources, removed }: { sources: readonly Source[]; removed: string[] },
): AsyncGenerator<Buffer> {
  const plan = planOf(tree, nodes, sources);
  // a directory's time changes with whatever is unpacked into it later
  for (const { path, node } of nodes) if (tree.type(node) === "directory") yield headerOf({ ...known(tree.entry(node)), path, mtime: 0 });
  for (const path of removed) yield headerOf(whiteoutOf(path));
  for (const { path, node } of nodes) {
    const first = plan.linked.get(node)?.path ?? path;
    const type = tree.type(node);
    if (type !== "directory" && type !== "file" && first === path) yield headerOf({ ...known(tree.entry(node)), path });
  }
  for (const [index, source] of sources.entries()) yield* contentsOf(source, plan.places[index] ?? []);
  for (const { path: target, others, entry } of plan.linked.values())
    for (const path of others) yield headerOf({ ...known(entry), path, type: "link", size: 0, target, xattrs: {} });
  yield endOfTar();
}

/** The first name of something with several; the others become links to it. */
interface Linked {
  path: string;
  others: string[];
  entry: TarEntry | undefined;
}

type Places = (string | Linked | undefined)[];

interface Plan {
  /** Of each source: where the file at a position of it goes. */
  places: Places[];
  linked: Map<Node, Linked>;
}

function planOf(tree: FileTree, nodes: Iterable<PathNode>, sources: readonly Source[]): Plan {
  const plan: Plan = { places: sources.map((_, index) => new Array<undefined>(tree.positions(index))), linked: new Map() };
  for (const { path, node } of nodes) {
    const earlier = plan.linked.get(node);
    earlier?.others.push(path);
    if (earlier !== undefined) continue;
    const linked = tree.names(node) > 1 ? { path, others: [], entry: tree.entry(node) } : undefined;
    if (linked !== undefined) plan.linked.set(node, linked);
    const places = plan.places[tree.source(node)];
    if (tree.type(node) === "file" && places !== undefined) places[tree.position(node)] = linked ?? path;
  }
  return plan;
}

async function* contentsOf(source: Source, places: Places): AsyncGenerator<Buffer> {
  if (places.length === 0) return;
  let position = 0;
  for await (const { entry: read, content } of readTar(source.open())) {
    const place = places[position];
    // by now a text of its own
    places[position] = undefined;
    position += 1;
    if (place === undefined) continue;
    const entry = source.translate?.(read) ?? read;
    if (typeof place !== "string") place.entry = entry;
    yield headerOf({ ...entry, path: typeof place === "string" ? place : place.path });
    yield* content;
    yield paddingOf(entry.size);
  }
}

function known(entry: TarEntry | undefined): TarEntry {
  if (entry === undefined) throw new CloudletError("BUG", "a file's header is written before the file is read");
  return entry;
}

function whiteoutOf(path: string): TarEntry {
  const slash = path.lastIndexOf("/") + 1;
  const name = `${path.slice(0, slash)}.wh.${path.slice(slash)}`;
  return { path: name, type: "file", mode: 0, uid: 0, gid: 0, mtime: 0, size: 0, target: "", major: 0, minor: 0, xattrs: {} };
}
