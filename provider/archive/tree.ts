import { createHash } from "node:crypto";
import { CloudletError } from "../core/errors.ts";
import { FileTree, type Made, type Node } from "./fileTree.ts";
import { readTar, type ReadEntry } from "./read.ts";
import { attributesOf, shown, type TarEntry } from "./tar.ts";

/** A tar that can be read more than once. */
export interface Source {
  /** For messages. */
  name: string;
  /** The uncompressed bytes, the same each time. */
  open(): AsyncIterable<Buffer>;
  /** SHA-256 of the uncompressed bytes, in lower-case hex; compared while reading. */
  digest?: string;
  /** Only what lies below this path counts, as if it were the root. */
  strip?: string;
  /** Everything is put below this path. */
  prefix?: string;
  /** Whether names that begin with `.wh.` remove what earlier sources have, as in layers of container images. */
  whiteouts?: boolean;
  /** What an entry really means. */
  translate?: (entry: TarEntry) => TarEntry;
  /** Whether to remember a digest of each file's content. */
  contents?: boolean;
}

/** Names more than this are an attack, and would not fit into memory. */
const nodeLimit = 2_000_000;
const whiteout = ".wh.";
const opaque = ".wh..wh..opq";

/** The file tree that sources make when one is unpacked over the other. Nothing that a tar says can lead out of it. */
export async function readTree(sources: readonly Source[]): Promise<FileTree> {
  const tree = new FileTree();
  tree.add(implied);
  for (const [index, source] of sources.entries()) await addSource(tree, source, index);
  return tree;
}

/** A directory that no source mentions, and that its content needs. */
const implied: Made = {
  entry: { path: "", type: "directory", mode: 0o755, uid: 0, gid: 0, mtime: 0, size: 0, target: "", major: 0, minor: 0, xattrs: {} },
  source: -1,
  position: -1,
};

async function addSource(tree: FileTree, source: Source, index: number): Promise<void> {
  const hash = createHash("sha256");
  let position = 0;
  for await (const read of readTar(source.digest === undefined ? source.open() : hashing(source.open(), hash))) {
    if (position > nodeLimit) throw refused(source, "holds more files than a root file system");
    const segments = placeOf(source, read.entry.path);
    const entry = source.translate?.(read.entry) ?? read.entry;
    if (segments !== undefined) await addEntry(tree, { source, index, position, read: { ...read, entry }, segments });
    position += 1;
  }
  if (source.digest !== undefined && hash.digest("hex") !== source.digest) {
    throw new CloudletError("INTEGRITY", `${source.name} does not match its digest ${source.digest}`, { fix: "fetch or build it again" });
  }
}

async function* hashing(bytes: AsyncIterable<Buffer>, hash: ReturnType<typeof createHash>): AsyncGenerator<Buffer> {
  for await (const chunk of bytes) {
    hash.update(chunk);
    yield chunk;
  }
}

interface Addition {
  source: Source;
  index: number;
  position: number;
  read: ReadEntry;
  segments: string[];
}

async function addEntry(tree: FileTree, addition: Addition): Promise<void> {
  const { source, index, read, segments } = addition;
  const name = segments.at(-1);
  if (name === undefined) return tree.setRoot(await madeOf(addition));
  const parent = parentOf(tree, addition);
  if (source.whiteouts === true && name.startsWith(whiteout)) return hide(tree, { parent, name, index });
  const present = tree.child(parent, name);
  const node = read.entry.type === "link" ? linked(tree, addition) : tree.add(await madeOf(addition));
  if (present !== undefined && tree.type(present) === "directory" && tree.type(node) === "directory") tree.moveChildren(present, node);
  else if (present !== undefined) forget(tree, present);
  tree.setChild(parent, name, node);
}

async function madeOf({ source, read, index, position }: Addition): Promise<Made> {
  const hashed = source.contents === true && read.entry.type === "file";
  return { entry: read.entry, source: index, position, digest: hashed ? await digestOf(read) : undefined };
}

/** Everything below a node that is replaced or removed has a name less. */
function forget(tree: FileTree, node: Node): void {
  tree.changeNames(node, -1);
  for (const child of tree.children(node)) forget(tree, child);
}

async function digestOf({ entry, content }: ReadEntry): Promise<Buffer> {
  const hash = createHash("sha256").update(attributesOf(entry));
  for await (const chunk of content) hash.update(chunk);
  return hash.digest();
}

/** A whiteout removes what lies below its own source, wherever it stands in it. */
function hide(tree: FileTree, { parent, name, index }: { parent: Node; name: string; index: number }): void {
  const hidden = name === opaque ? tree.namesIn(parent) : [name.slice(whiteout.length)];
  for (const each of hidden) {
    const node = tree.child(parent, each);
    if (node === undefined) continue;
    hide(tree, { parent: node, name: opaque, index });
    if (tree.source(node) >= index || tree.namesIn(node).length > 0) continue;
    forget(tree, node);
    tree.removeChild(parent, each);
  }
}

function parentOf(tree: FileTree, { source, segments }: Addition): Node {
  let at = tree.root;
  for (const name of segments.slice(0, -1)) {
    let next = tree.child(at, name);
    if (next === undefined) tree.setChild(at, name, (next = tree.add(implied)));
    if (tree.type(next) !== "directory")
      throw refused(source, `puts ${shown(segments.join("/"))} below ${shown(name)}, which is no directory`);
    at = next;
  }
  return at;
}

function linked(tree: FileTree, { source, read }: Addition): Node {
  const target = placeOf(source, read.entry.target) ?? [];
  let at: Node | undefined = tree.root;
  for (const name of target) at = at === undefined ? undefined : tree.child(at, name);
  if (at !== undefined && tree.type(at) !== "directory") {
    tree.changeNames(at, 1);
    return at;
  }
  throw refused(source, `links ${shown(read.entry.path)} to ${shown(read.entry.target)}, which is no file in it`);
}

/** Where an entry goes; undefined = it does not count. */
function placeOf(source: Source, path: string): string[] | undefined {
  const segments = path.split("/").filter((segment) => segment !== "" && segment !== ".");
  if (segments.includes("..") || path.includes("\0")) throw refused(source, `names ${shown(path)}, which leads out of it`);
  const strip = source.strip?.split("/") ?? [];
  if (strip.some((name, at) => segments[at] !== name)) return undefined;
  return [...(source.prefix?.split("/") ?? []), ...segments.slice(strip.length)];
}

function refused(source: Source, why: string): CloudletError {
  return new CloudletError("INTEGRITY", `${source.name} ${why}`, { fix: "make it again" });
}
