import type { EntryType, TarEntry } from "./tar.ts";

/** Number of a file, directory or the like in its tree; hard links are several names of one of these. */
export type Node = number;

export interface Made {
  /** Of a file only its type is kept: the rest is read from its source once more. */
  entry: TarEntry;
  /** Which of the sources it is from, and at which position there. */
  source: number;
  position: number;
  /** SHA-256 of a file's attributes and content, where it was asked for. */
  digest?: Buffer | undefined;
}

export interface PathNode {
  path: string;
  node: Node;
}

const types: readonly EntryType[] = ["file", "directory", "symlink", "link", "character", "block", "fifo"];
const [typeColumn, sourceColumn, positionColumn, namesColumn] = [0, 1, 2, 3];
const columns = 4;
const digestBytes = 32;

/** Files and directories by name. In columns rather than objects, as there may be a million of them. */
export class FileTree {
  readonly root: Node = 0;
  #count = 0;
  #numbers = new Int32Array(columns * 1024);
  #digests = Buffer.alloc(0);
  readonly #positions: number[] = [];
  readonly #entries = new Map<Node, TarEntry>();
  readonly #children = new Map<Node, Map<string, Node>>();

  /** A node with one name, which is still to be given to a directory; the first one is the root. */
  add(made: Made): Node {
    const node = this.#count;
    this.#count += 1;
    if (this.#count * columns > this.#numbers.length) this.#numbers = doubled(this.#numbers);
    this.#set(node, made);
    return node;
  }

  /** The root's own attributes; what it has stays. */
  setRoot(made: Made): void {
    this.#set(this.root, made);
  }

  type(node: Node): EntryType {
    return types[this.#number(node, typeColumn)] ?? "file";
  }

  /** Which source it is from; below 0 = none mentions it. */
  source(node: Node): number {
    return this.#number(node, sourceColumn);
  }

  position(node: Node): number {
    return this.#number(node, positionColumn);
  }

  /** How many positions a source has, up to the last one that counts. */
  positions(source: number): number {
    return this.#positions[source] ?? 0;
  }

  /** How many names it has. */
  names(node: Node): number {
    return this.#number(node, namesColumn);
  }

  changeNames(node: Node, by: number): void {
    this.#numbers[node * columns + namesColumn] = this.names(node) + by;
  }

  /** Without its path; of a file undefined. */
  entry(node: Node): TarEntry | undefined {
    return this.#entries.get(node);
  }

  digest(node: Node): Buffer {
    return this.#digests.subarray(node * digestBytes, (node + 1) * digestBytes);
  }

  child(directory: Node, name: string): Node | undefined {
    return this.#children.get(directory)?.get(name);
  }

  setChild(directory: Node, name: string, node: Node): void {
    const children = this.#children.get(directory) ?? new Map<string, Node>();
    if (children.size === 0) this.#children.set(directory, children);
    // a part of a longer text would keep all of it in memory
    children.set(Buffer.from(name, "latin1").toString("latin1"), node);
  }

  removeChild(directory: Node, name: string): void {
    this.#children.get(directory)?.delete(name);
  }

  /** Gives `to` all that `from` has. */
  moveChildren(from: Node, to: Node): void {
    const children = this.#children.get(from);
    if (children === undefined) return;
    this.#children.delete(from);
    this.#children.set(to, children);
  }

  children(directory: Node): Iterable<Node> {
    return this.#children.get(directory)?.values() ?? [];
  }

  /** In an order that depends on the names only. */
  namesIn(directory: Node): string[] {
    return [...(this.#children.get(directory)?.keys() ?? [])].sort((a, b) => (a < b ? -1 : 1));
  }

  /** All nodes but the root, in the order of their names, parents first; paths have no slash at either end. */
  *walk(directory: Node = this.root, path = ""): Generator<PathNode> {
    for (const name of this.namesIn(directory)) {
      const node = this.child(directory, name);
      if (node === undefined) continue;
      const at = path === "" ? name : `${path}/${name}`;
      yield { path: at, node };
      yield* this.walk(node, at);
    }
  }

  #number(node: Node, column: number): number {
    return this.#numbers[node * columns + column] ?? 0;
  }

  #set(node: Node, { entry, source, position, digest }: Made): void {
    this.#numbers.set([types.indexOf(entry.type), source, position, 1], node * columns);
    if (source >= 0) this.#positions[source] = position + 1;
    if (entry.type !== "file") this.#entries.set(node, { ...entry, path: "" });
    if (digest !== undefined) this.#setDigest(node, digest);
  }

  #setDigest(node: Node, digest: Buffer): void {
    const needed = (node + 1) * digestBytes;
    if (needed > this.#digests.length) this.#digests = Buffer.concat([this.#digests], Math.max(2 * this.#digests.length, 2 * needed));
    digest.copy(this.#digests, node * digestBytes);
  }
}

function doubled(numbers: Int32Array<ArrayBuffer>): Int32Array<ArrayBuffer> {
  const more = new Int32Array(2 * numbers.length);
  more.set(numbers);
  return more;
}
