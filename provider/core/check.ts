import { describeError } from "./errors.ts";
import type { CheckContext, Issue, LocalDigests, ResourceDefinition } from "./define.ts";
import type { Declarations } from "./declarations.ts";
import { diffInputs } from "./diff.ts";
import { fieldsOf } from "./fields.ts";
import { parseKnown } from "./parse.ts";
import { isRecord, knownFields } from "./values.ts";

export interface CheckRequest {
  /** Inputs as the program gave them, unknown values included. */
  news: Record<string, unknown>;
  /** What stands in for fields of these names that the program leaves out, where the resource has them. */
  defaults?: Record<string, unknown>;
  /** The state before, if any. */
  old?: Record<string, unknown> | undefined;
  declarations: Declarations;
  local: LocalDigests;
}

export interface CheckResult {
  /** With defaults and completed; unknown values in their place. */
  inputs: Record<string, unknown>;
  issues: Issue[];
  /** What a reviewer should know of a new resource or a change. */
  explanation?: string | undefined;
}

/** Parse, complete, then the rules of the domain. Never throws for what a user can write, and reaches no node. */
export async function checkInputs(definition: ResourceDefinition, request: CheckRequest): Promise<CheckResult> {
  const parsed = parseKnown(definition.inputs, withDefaults(definition, request));
  if (!isRecord(parsed.value) || parsed.issues.length > 0) return { inputs: request.news, issues: parsed.issues };
  const declared = request.declarations.besides(definition, knownFields(parsed.value));
  const given = new Set(Object.entries(parsed.value).flatMap(([name, value]) => (value === undefined ? [] : [name])));
  const context: CheckContext = { ...request.local, declared, given };
  try {
    const completed = await complete(definition, parsed.value, context);
    const known = knownFields(completed.inputs);
    const issues = [...completed.issues, ...((await definition.constraints?.(known, context, request.old)) ?? [])];
    const inputs = withoutCheckOnly(definition, completed.inputs);
    if (issues.length > 0) return { inputs, issues };
    request.declarations.add(definition, known);
    const same = request.old !== undefined && diffInputs(definition.inputs, request.old, inputs).length === 0;
    return { inputs, issues, explanation: same ? undefined : definition.explain?.(known, request.old) };
  } catch (error) {
    return { inputs: request.news, issues: [{ path: "", message: describeError(error) }] };
  }
}

function withDefaults(definition: ResourceDefinition, { news, defaults = {} }: CheckRequest): Record<string, unknown> {
  const missing = Object.entries(defaults).filter(([name]) => name in definition.inputs.shape && (news[name] ?? undefined) === undefined);
  return { ...news, ...Object.fromEntries(missing) };
}

/** What a reviewer should know of a change of inputs, in view of the whole state. */
export function explainChange(
  definition: ResourceDefinition,
  want: Record<string, unknown>,
  have: Record<string, unknown>,
): string | undefined {
  return definition.explainChange?.(knownFields(want), have);
}

async function complete(definition: ResourceDefinition, inputs: Record<string, unknown>, context: CheckContext): Promise<CheckResult> {
  if (!definition.complete) return { inputs, issues: [] };
  const known = knownFields(inputs);
  const completed = await definition.complete(known, context);
  return { inputs: { ...inputs, ...completed.inputs }, issues: completed.issues };
}

function withoutCheckOnly(definition: ResourceDefinition, inputs: Record<string, unknown>): Record<string, unknown> {
  const dropped = new Set(
    fieldsOf(definition.inputs)
      .filter(({ meta }) => meta.checkOnly)
      .map(({ name }) => name),
  );
  return Object.fromEntries(Object.entries(inputs).filter(([name]) => !dropped.has(name)));
}
