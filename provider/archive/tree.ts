import { createHash } from "node:crypto";
import { CloudletError } from "../core/errors.ts";
import { readTar, type ReadEntry } from "./read.ts";
import { shown, type TarEntry } from "./tar.ts";

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

/** A file, directory or the like; hard links are several nodes with one of these. */
export interface Inode {
  /** Its `path` is empty: there may be a hundred thousand of them in memory. */
  entry: TarEntry;
  /** Which of the sources it is from, and at which position there. */
  source: number;
  position: number;
  /** SHA-256 of a file's content, as bytes, where it was asked for. */
  digest: string;
  /** How many names it has. */
  names: number;
}

export interface Node {
  inode: Inode;
  /** Of a directory that is not empty. */
  children?: Map<string, Node> | undefined;
}

/** Names more than this are an attack, and would not fit into memory. */
const nodeLimit = 2_000_000;
const whiteout = ".wh.";
const opaque = ".wh..wh..opq";

/** The file tree that sources make when one is unpacked over the other. Nothing that a tar says can lead out of it. */
export async function readTree(sources: readonly Source[]): Promise<Node> {
  const root: Node = { inode: implied() };
  for (const [index, source] of sources.entries()) await addSource(root, source, index);
  return root;
}

/** All nodes but the root in an order that depends on their names only, parents first; paths have no slash at either end. */
export function* walk(node: Node, path = ""): Generator<{ path: string; node: Node }> {
  for (const name of namesIn(node)) {
    const child = node.children?.get(name);
    if (child === undefined) continue;
    const at = path === "" ? name : `${path}/${name}`;
    yield { path: at, node: child };
    yield* walk(child, at);
  }
}

export function namesIn(node: Node): string[] {
  return [...(node.children?.keys() ?? [])].sort((a, b) => (a < b ? -1 : 1));
}

/** A directory that no source mentions, and that its content needs. */
function implied(): Inode {
  const entry: TarEntry = {
    path: "",
    type: "directory",
    mode: 0o755,
    uid: 0,
    gid: 0,
    mtime: 0,
    size: 0,
    target: "",
    major: 0,
    minor: 0,
    xattrs: {},
  };
  return { entry, source: -1, position: -1, digest: "", names: 1 };
}

async function addSource(root: Node, source: Source, index: number): Promise<void> {
  const hash = createHash("sha256");
  let position = 0;
  for await (const read of readTar(source.digest === undefined ? source.open() : hashing(source.open(), hash))) {
    if (position > nodeLimit) throw refused(source, "holds more files than a root file system");
    const segments = placeOf(source, read.entry.path);
    const entry = source.translate?.(read.entry) ?? read.entry;
    if (segments !== undefined) await addEntry(root, { source, index, position, read: { ...read, entry }, segments });
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

async function addEntry(root: Node, addition: Addition): Promise<void> {
  const { source, index, read, segments } = addition;
  const name = segments.at(-1);
  if (name === undefined) return void (root.inode = await inodeOf(addition));
  const parent = parentOf(root, addition);
  if (source.whiteouts === true && name.startsWith(whiteout)) return hide(parent, name, index);
  const present = parent.children?.get(name);
  const inode = read.entry.type === "link" ? linked(root, addition) : await inodeOf(addition);
  const stays = present?.inode.entry.type === "directory" && inode.entry.type === "directory";
  if (present !== undefined && !stays) forget(present);
  (parent.children ??= new Map()).set(name, { inode, children: stays ? present.children : undefined });
}

const noXattrs = {};

async function inodeOf(addition: Addition): Promise<Inode> {
  const { read, index, position } = addition;
  const digest = await digestOf(addition);
  const xattrs = Object.keys(read.entry.xattrs).length === 0 ? noXattrs : read.entry.xattrs;
  return { entry: { ...read.entry, path: "", xattrs }, source: index, position, digest, names: 1 };
}

/** Everything below a node that is replaced or removed has a name less. */
function forget(node: Node): void {
  node.inode.names -= 1;
  for (const child of node.children?.values() ?? []) forget(child);
}

async function digestOf({ source, read }: Addition): Promise<string> {
  if (source.contents !== true || read.entry.type !== "file") return "";
  const hash = createHash("sha256");
  for await (const chunk of read.content) hash.update(chunk);
  return hash.digest().toString("latin1");
}

/** A whiteout removes what lies below its own source, wherever it stands in it. */
function hide(parent: Node, name: string, index: number): void {
  const hidden = name === opaque ? [...(parent.children?.keys() ?? [])] : [name.slice(whiteout.length)];
  for (const each of hidden) {
    const node = parent.children?.get(each);
    if (node === undefined) continue;
    hide(node, opaque, index);
    if (node.inode.source >= index || (node.children?.size ?? 0) > 0) continue;
    forget(node);
    parent.children?.delete(each);
  }
}

function parentOf(root: Node, { source, segments }: Addition): Node {
  let at = root;
  for (const name of segments.slice(0, -1)) {
    const next: Node = at.children?.get(name) ?? { inode: implied() };
    if (next.inode.entry.type !== "directory")
      throw refused(source, `puts ${shown(segments.join("/"))} below ${shown(name)}, which is no directory`);
    (at.children ??= new Map()).set(name, next);
    at = next;
  }
  return at;
}

function linked(root: Node, { source, read }: Addition): Inode {
  const target = placeOf(source, read.entry.target) ?? [];
  let at: Node | undefined = root;
  for (const name of target) at = at?.children?.get(name);
  if (at !== undefined && at.inode.entry.type !== "directory") {
    at.inode.names += 1;
    return at.inode;
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
