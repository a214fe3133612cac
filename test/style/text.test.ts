import { describe, expect, it } from "vitest";
import { paths, read } from "./sources.ts";

const longest = 400;
const sources = paths.filter((path) => /\.(ts|cjs|js|sh)$/.test(path));

it(`no file is longer than ${longest} lines`, () => {
  const long = sources.map((path) => ({ path, lines: read(path).split("\n").length - 1 })).filter(({ lines }) => lines > longest);
  expect(long.map(({ path, lines }) => `${path} has ${lines} lines; split it by what it does`)).toEqual([]);
});

it("file names say what is inside", () => {
  const vague = paths.filter((path) => /(^|\/)(utils?|helpers?|common|misc|manager)\b|(Utils?|Helpers?|Manager)\./i.test(path));
  expect(vague.map((path) => `${path} has a name that says nothing`)).toEqual([]);
});

// in two parts, so that this file does not find itself
const forbidden: { pattern: RegExp; why: string }[] = [
  { pattern: new RegExp(`\\b(TO${"DO"}|FIX${"ME"}|X${"XX"})\\b`), why: "finish it, or open an issue" },
  { pattern: new RegExp(`\\bas ${"any"}\\b`), why: "give it a type" },
  { pattern: new RegExp(`@ts-${"(ignore|nocheck|expect-error)"}`), why: "correct the types" },
  { pattern: new RegExp(`eslint-${"disable"}|prettier-${"ignore"}`), why: "follow the rule, or change it for everybody" },
  { pattern: new RegExp(`\\b(it|test|describe)(\\.\\w+)*\\.${"only"}\\b`), why: "it hides all other tests" },
  { pattern: new RegExp(`\\b(it|test|describe)(\\.\\w+)*\\.(${"skip"}|${"todo"})\\b`), why: "say under which condition, by skipIf" },
  { pattern: new RegExp(`/(${"work"}/|root/${"setup"})`), why: "it is a path of one machine" },
];

it("nothing is left that was meant to go", () => {
  const found = paths.flatMap((path) => {
    const lines = read(path).split("\n");
    return forbidden.flatMap(({ pattern, why }) =>
      lines.flatMap((line, index) =>
        pattern.test(line) ? [`${path}:${index + 1} has "${pattern.exec(line)?.[0].trim() ?? ""}"; ${why}`] : [],
      ),
    );
  });
  expect(found).toEqual([]);
});

describe("the changelog", () => {
  const [title = "", ...releases] = read("CHANGELOG.md").split(/^## /m);

  it("has its title, and what is not released yet on top", () => {
    expect(title).toMatch(/^# Changelog\n/);
    expect(releases[0]).toMatch(/^\[Unreleased\]\n/);
  });

  it.each(releases.map((text) => [text.split("\n", 1)[0] ?? "", text] as const))("%s keeps the form", (heading, text) => {
    if (heading !== "[Unreleased]") expect(heading).toMatch(/^\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d$/);
    const order = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"];
    const kinds = [...text.matchAll(/^### (.*)$/gm)].map(([, kind = ""]) => kind);
    expect(kinds).toEqual(order.filter((kind) => kinds.includes(kind)));
    const lines = text.split("\n").slice(1);
    const odd = lines.filter((line) => line !== "" && !/^### /.test(line) && !/^- [A-Z`].*\.$/.test(line));
    expect(odd.map((line) => `"${line}" is not one sentence after a dash`)).toEqual([]);
  });
});
