import { readdirSync, readFileSync, statSync } from "node:fs";
import { dirname, join, relative } from "node:path";

export const repository = join(import.meta.dirname, "../..");

const folders = ["provider", "sdk", "test", "tools", "examples", "docs", ".ci"];
const atTop = /\.(md|json|ts|js)$|^(Makefile|LICENSE)$/;

/** Paths of the project's own files, relative to the repository. */
export const paths: string[] = [
  ...readdirSync(repository).filter((name) => atTop.test(name) && statSync(join(repository, name)).isFile()),
  ...folders.flatMap(filesBelow),
].filter((path) => path !== "package-lock.json" && !/(^|\/)go\.(mod|sum)$/.test(path) && !isGenerated(path));

/** The SDKs for other languages, which Pulumi's generators write. */
function isGenerated(path: string): boolean {
  return path.startsWith("sdk/python/pulumi_cloudlet/") || path.startsWith("sdk/go/cloudlet/");
}

export function read(path: string): string {
  return readFileSync(join(repository, path), "utf8");
}

export interface Import {
  from: string;
  /** A path relative to the repository, or the name of a package or built-in module. */
  to: string;
  /** Erased when the file runs. */
  typeOnly: boolean;
}

const statement = /^(?:import|export)\s+(type\s)?(?:[^;"]*?\sfrom\s+)?"([^"]+)"/gm;
const call = /\bimport\("([^"]+)"\)/g;

/** Every import of the TypeScript files. */
export const imports: Import[] = paths
  .filter((path) => path.endsWith(".ts"))
  .flatMap((from) => {
    const text = read(from);
    const found = [
      ...[...text.matchAll(statement)].map(([, type, to = ""]) => ({ to, typeOnly: type !== undefined })),
      ...[...text.matchAll(call)].map(([, to = ""]) => ({ to, typeOnly: false })),
    ];
    return found.map(({ to, typeOnly }) => ({ from, to: to.startsWith(".") ? join(dirname(from), to) : to, typeOnly }));
  });

/** What a file imports, and what that imports, and so on; packages and built-in modules included. */
export function reachedFrom(start: string, follow: (edge: Import) => boolean = () => true): Set<string> {
  const reached = new Set<string>();
  const waiting = [start];
  for (let next = waiting.pop(); next !== undefined; next = waiting.pop()) {
    for (const edge of byFile.get(next) ?? []) {
      if (reached.has(edge.to) || !follow(edge)) continue;
      reached.add(edge.to);
      waiting.push(edge.to);
    }
  }
  return reached;
}

const byFile = new Map<string, Import[]>();
for (const edge of imports) byFile.set(edge.from, [...(byFile.get(edge.from) ?? []), edge]);

function filesBelow(folder: string): string[] {
  return readdirSync(join(repository, folder), { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => relative(repository, join(entry.parentPath, entry.name)));
}
