import type { Context } from "./context.ts";
import type { FunctionDefinition, Issue } from "./define.ts";
import { parseKnown } from "./parse.ts";
import { isRecord } from "./values.ts";

export type Answer = { result: Record<string, unknown> } | { issues: Issue[] };

/** Runs a function with what a program passes. `open` is called only where something is done. */
export async function invoke(
  definition: FunctionDefinition,
  { given, preview }: { given: Record<string, unknown>; preview: boolean },
  open: () => Context,
): Promise<Answer> {
  const { value, issues } = parseKnown(definition.inputs, given);
  if (issues.length > 0 || !isRecord(value)) return { issues };
  if (preview && definition.inPreview) return { result: definition.inPreview };
  return { result: await definition.run(value, open()) };
}
