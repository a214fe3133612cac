import type { Context } from "./context.ts";
import type { Adopted, ResourceDefinition } from "./define.ts";
import { diffInputs, withoutIgnored } from "./diff.ts";
import { CloudletError, describeError } from "./errors.ts";
import { fieldsOf } from "./fields.ts";
import { knownFields } from "./values.ts";

export type State = Record<string, unknown>;

/** Something exists on the node, or may; the state that is known must be kept, so that the next run continues there. */
export class PartialFailure extends CloudletError {
  readonly id: string;
  readonly state: State;
  readonly reasons: string[];

  constructor(existing: { id: string; state: State }, reasons: string[], cause?: unknown) {
    super("PARTIAL", reasons.join("\n"), cause === undefined ? {} : { cause });
    this.id = existing.id;
    this.state = existing.state;
    this.reasons = reasons;
  }
}

export async function create(definition: ResourceDefinition, inputs: State, context: Context): Promise<{ id: string; state: State }> {
  const id = definition.identity(inputs);
  return { id, state: await reconcile(definition, { id, inputs, old: undefined }, context) };
}

export async function update(
  definition: ResourceDefinition,
  change: { id: string; inputs: State; old: State },
  context: Context,
): Promise<State> {
  return reconcile(definition, { ...change, old: withDefaults(definition, change.old) }, context);
}

/** What a preview may show of the state that create or update would end in; unknown outputs are absent. */
export function preview(definition: ResourceDefinition, inputs: State, old: State | undefined): State {
  return { ...inputs, ...definition.predict?.(knownFields(inputs), old && withDefaults(definition, old)) };
}

/** undefined = the node answered and has none. A node that does not answer is an error, never an absence. */
export async function read(definition: ResourceDefinition, known: State, context: Context): Promise<State | undefined> {
  return definition.observe(withDefaults(definition, known), context);
}

/** What an id alone leads to, for import. undefined = the node answered and has none. */
export async function adopt(
  definition: ResourceDefinition,
  wanted: Adopted,
  context: Context,
): Promise<{ id: string; state: State } | undefined> {
  if (!definition.adopt)
    throw new CloudletError("UNSUPPORTED", `a ${definition.token} cannot be imported`, { fix: "declare it; what is there is taken up" });
  const state = await definition.adopt(wanted, context);
  return state && { id: definition.identity(state), state };
}

export async function remove(definition: ResourceDefinition, have: State, context: Context): Promise<void> {
  await definition.remove(withDefaults(definition, have), context);
}

/** The input fields of a state, as the program would have declared them. */
export function inputsOf(definition: ResourceDefinition, state: State): State {
  const entries = fieldsOf(definition.inputs).map(({ name }) => [name, state[name]] as const);
  return Object.fromEntries(entries.filter(([, value]) => value !== undefined && value !== null));
}

interface Target {
  id: string;
  inputs: State;
  old: State | undefined;
}

async function reconcile(definition: ResourceDefinition, { id, inputs, old }: Target, context: Context): Promise<State> {
  const { watched, reached } = watchContact(context);
  let known = { ...outputsOf(definition, old ?? {}), ...inputs };
  try {
    known = { ...known, ...(await definition.apply(inputs, old, watched)) };
  } catch (error) {
    // where no node was reached, nothing can have changed there
    if (!reached()) throw error;
    const observed = await definition.observe(old ?? known, context).catch(() => old ?? known);
    if (observed === undefined && old === undefined) throw error;
    throw new PartialFailure({ id, state: observed ?? old ?? known }, [describeError(error)], error);
  }
  const observed = await definition.observe(known, context).catch((error: unknown) => {
    throw new PartialFailure({ id, state: known }, [describeError(error)], error);
  });
  if (observed === undefined)
    throw new PartialFailure({ id, state: known }, [
      `${definition.token} "${id}" was applied and is not there; run \`pulumi up\` again [PARTIAL]`,
    ]);
  const reasons = withoutIgnored(diffInputs(definition.inputs, observed, inputs), definition.mayLag ?? []).map(
    ({ path }) =>
      `${path} still differs from what was declared after it was applied; run \`pulumi up\` again, and read the node's log if it stays so [PARTIAL]`,
  );
  if (reasons.length > 0) throw new PartialFailure({ id, state: observed }, reasons);
  return observed;
}

/** A state that an older version wrote lacks the fields that are new since. */
function withDefaults(definition: ResourceDefinition, state: State): State {
  const missing = fieldsOf(definition.inputs).filter(
    ({ name, fallback }) => fallback !== undefined && (state[name] === undefined || state[name] === null),
  );
  return { ...state, ...Object.fromEntries(missing.map(({ name, fallback }) => [name, fallback])) };
}

function outputsOf(definition: ResourceDefinition, state: State): State {
  return Object.fromEntries(Object.entries(state).filter(([name]) => name in definition.outputs.shape));
}

/** Tells whether anything outside this process was reached. */
function watchContact(context: Context): { watched: Context; reached: () => boolean } {
  let contact = false;
  const noting = async <T>(opened: Promise<T>): Promise<T> => {
    const result = await opened;
    contact = true;
    return result;
  };
  const watched: Context = {
    ...context,
    host: (connection) => noting(context.host(connection)),
    agent: (connection) => noting(context.agent(connection)),
    lxd: (connection, remote) => noting(context.lxd(connection, remote)),
  };
  return { watched, reached: () => contact };
}
