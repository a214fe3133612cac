import type { z } from "zod";

type ZodIssue = z.core.$ZodIssue;

/** What is wrong and what to do, without the value itself: it may be a secret. */
export function issueText(issue: ZodIssue): string {
  const text = plainText(issue);
  return /[;]/.test(text) ? text : `${text}; ${remedy(issue)}`;
}

/** ` (did you mean "hostPort"?)`, or nothing. */
export function didYouMean(word: string, known: readonly string[]): string {
  const near = known
    .map((candidate) => ({ candidate, distance: editDistance(word.toLowerCase(), candidate.toLowerCase()) }))
    .filter(({ candidate, distance }) => distance <= Math.ceil(Math.max(word.length, candidate.length) / 3))
    .sort((a, b) => a.distance - b.distance)[0];
  return near ? ` (did you mean "${near.candidate}"?)` : "";
}

function plainText(issue: ZodIssue): string {
  switch (issue.code) {
    case "invalid_type":
      return issue.input === undefined ? "is missing" : `must be ${typeName(issue.expected)}, and is ${nameOf(issue.input)}`;
    case "invalid_value":
      return `must be ${orList(issue.values.map((value) => JSON.stringify(value)))}`;
    case "too_small":
      return `must ${bound(issue.origin, issue.minimum, "at least")}`;
    case "too_big":
      return `must ${bound(issue.origin, issue.maximum, "at most")}`;
    case "not_multiple_of":
      return `must be a multiple of ${issue.divisor}`;
    case "invalid_format":
      return issue.message.startsWith("Invalid string") ? formatRule(issue) : issue.message;
    case "invalid_key":
      return `has a name that ${issue.issues[0] ? plainText(issue.issues[0]) : "is not allowed"}`;
    case "invalid_union":
      return unionText(issue);
    default:
      return issue.message;
  }
}

function remedy(issue: ZodIssue): string {
  if (issue.code === "invalid_type" && issue.input === undefined) return "set it";
  if (issue.code === "invalid_value") return "use one of these";
  if (issue.code === "too_big") return typeof issue.maximum === "number" && issue.origin === "number" ? "use a smaller one" : "shorten it";
  if (issue.code === "too_small" && issue.origin === "number") return "use a larger one";
  return "correct it";
}

function formatRule(issue: ZodIssue & { code: "invalid_format" }): string {
  if (issue.format === "starts_with" && "prefix" in issue) return `must begin with ${JSON.stringify(issue.prefix)}`;
  return issue.pattern ? `must match ${issue.pattern}` : `must be a valid ${issue.format}`;
}

function unionText(issue: ZodIssue & { code: "invalid_union" }): string {
  const texts = new Set(issue.errors.flatMap((branch) => branch.slice(0, 1).map(branchText)));
  return texts.size === 0 ? "has none of the allowed forms" : [...texts].join(", or ");
}

function branchText(issue: ZodIssue): string {
  return issue.path.length === 0 ? plainText(issue) : `${issue.path.map(String).join(".")} ${plainText(issue)}`;
}

function bound(origin: string, limit: number | bigint, word: string): string {
  if (origin === "string") return `have ${word} ${limit} character${limit === 1 ? "" : "s"}`;
  if (origin === "array" || origin === "set" || origin === "record") return `have ${word} ${limit} element${limit === 1 ? "" : "s"}`;
  return `be ${word} ${limit}`;
}

const typeNames: Record<string, string> = {
  int: "a whole number",
  number: "a number",
  string: "text",
  boolean: "true or false",
  array: "a list",
  object: "an object",
  record: "a map",
};

function typeName(expected: string): string {
  return typeNames[expected] ?? expected;
}

function nameOf(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "a list";
  if (typeof value === "number") return Number.isInteger(value) ? "a number" : "a number with a fraction";
  return { string: "text", boolean: "true or false", object: "an object" }[typeof value as string] ?? typeof value;
}

function orList(words: string[]): string {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}`;
}

function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (const [i, left] of [...a].entries()) {
    const next = [i + 1];
    for (const [j, right] of [...b].entries()) {
      next.push(Math.min((row[j + 1] ?? 0) + 1, (next[j] ?? 0) + 1, (row[j] ?? 0) + (left === right ? 0 : 1)));
    }
    row = next;
  }
  return row.at(-1) ?? 0;
}
