import { dirname, join } from "node:path";
import ts from "typescript";
import { expect, it } from "vitest";
import { errorCodes } from "../../provider/core/errors.ts";
import { labProgram } from "../lab/program.ts";
import { readmeProgram } from "../readme.ts";
import { paths, read, repository } from "./sources.ts";

const documents = paths.filter((path) => path.endsWith(".md"));

it("links lead to files and headings that exist", () => {
  const broken = documents.flatMap((document) =>
    linksOf(document).flatMap((link) => {
      const [file = "", heading] = link.split("#");
      const target = file === "" ? document : join(dirname(document), file).replace(/\/$/, "");
      const isThere = paths.includes(target) || paths.some((path) => path.startsWith(`${target}/`));
      if (!isThere) return [`${document} links to ${link}, which does not exist`];
      if (heading !== undefined && !headingsOf(target).includes(heading))
        return [`${document} links to ${link}; ${target} has no such heading`];
      return [];
    }),
  );
  expect(broken).toEqual([]);
});

it("files that are named exist", () => {
  const named = documents.flatMap((document) =>
    [...read(document).matchAll(/`((?:provider|test|tools|sdk|docs|examples)\/[\w./-]+)`/g)].map(([, path = ""]) => ({ document, path })),
  );
  const missing = named.filter(({ path }) => !paths.some((other) => other === path || other.startsWith(`${path.replace(/\/$/, "")}/`)));
  expect(missing.map(({ document, path }) => `${document} names ${path}, which does not exist`)).toEqual([]);
});

it("every page is reachable from the README", () => {
  const reached = new Set(["README.md"]);
  for (const document of reached) {
    for (const link of linksOf(document)) {
      const target = join(dirname(document), link.split("#")[0] ?? "").replace(/\/$/, "");
      for (const path of documents) if (path === target || dirname(path) === target) reached.add(path);
    }
  }
  expect(documents.filter((path) => /^docs\//.test(path) && !reached.has(path)).map((path) => `${path} is linked from nowhere`)).toEqual(
    [],
  );
});

it("make targets that are named exist, and .ci/run calls one", () => {
  const targets = [...read("Makefile").matchAll(/^([a-z-]+):.*## /gm)].map(([, target]) => target);
  const named = [...documents, ".ci/run"].flatMap((document) =>
    [...read(document).matchAll(/(?:^|`|exec )make ([a-z-]+)/gm)].map(([, target]) => ({ document, target })),
  );
  expect(named.filter(({ target }) => !targets.includes(target)).map(({ document, target }) => `${document} names make ${target}`)).toEqual(
    [],
  );
  expect(named).toContainEqual({ document: ".ci/run", target: "test" });
  const said = new Set(named.map(({ target }) => target));
  expect(targets.filter((target) => !said.has(target)).map((target) => `make ${target} is described nowhere`)).toEqual([]);
});

it("every error code is explained", () => {
  const page = read("docs/errors.md");
  expect(Object.keys(errorCodes).filter((code) => !page.includes(`\`${code}\``))).toEqual([]);
});

it("the programs that are shown compile", { timeout: 60_000 }, () => {
  const gateways = ["gw1", "gw2"].map((name) => ({ name, address: "10.0.0.1", hostKey: "ssh-ed25519 AAAA" }));
  const lab = labProgram({ keyPath: "/key", gateways, image: "/image.tar.gz", command: "run" });
  expect(problemsOf({ "the README's program": readmeProgram(), "the lab's program": lab })).toEqual([]);
});

/** What the compiler says about programs in the examples' folder, against the sources. */
function problemsOf(programs: Record<string, string>): string[] {
  const names = Object.keys(programs);
  const fileOf = (index: number): string => join(repository, "examples", `shown${index}.ts`);
  const texts = new Map(names.map((name, index) => [fileOf(index), programs[name] ?? ""]));
  const { config } = ts.readConfigFile(join(repository, "tsconfig.json"), (path) => ts.sys.readFile(path)) as { config: object };
  const { options } = ts.parseJsonConfigFileContent({ ...config, files: [], include: [] }, ts.sys, repository);
  const host = ts.createCompilerHost(options);
  const { readFile, fileExists } = host;
  host.readFile = (path) => texts.get(path) ?? readFile(path);
  host.fileExists = (path) => texts.has(path) || fileExists(path);
  const found = ts.getPreEmitDiagnostics(ts.createProgram([...texts.keys()], options, host));
  return found.map(({ file, messageText, start }) => {
    const name = names.find((_, index) => fileOf(index) === file?.fileName) ?? file?.fileName ?? "settings";
    return `${name}, line ${lineAt(file?.text ?? "", start)}: ${ts.flattenDiagnosticMessageText(messageText, " ")}`;
  });
}

function lineAt(text: string, start = 0): number {
  return text.slice(0, start).split("\n").length;
}

/** Links to the project's own files. */
function linksOf(document: string): string[] {
  const links = [...read(document).matchAll(/\]\(([^)\s]+)\)/g)].map(([, link = ""]) => link);
  return links.filter((link) => !/^[a-z]+:/.test(link));
}

function headingsOf(document: string): string[] {
  const headings = [...read(document).matchAll(/^#+ (.*)$/gm)].map(([, heading = ""]) => heading);
  return headings.map((heading) =>
    heading
      .toLowerCase()
      .replace(/[^\p{L}\p{N}\s_-]/gu, "")
      .replaceAll(" ", "-"),
  );
}
