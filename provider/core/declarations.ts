import type { CheckContext, ResourceDefinition } from "./define.ts";

/** What one run of the engine has checked so far, so that constraints may span resources. */
export class Declarations {
  readonly #byToken = new Map<string, Declared>();

  add(definition: ResourceDefinition, inputs: Record<string, unknown>): void {
    const identity = identityOf(definition, inputs);
    if (identity === undefined) return;
    const declared = this.#byToken.get(definition.token) ?? { all: new Map<string, Declaration>(), listed: undefined };
    // two names for one identity are two declarations that clash
    const declaration = { identity, name: String(inputs["name"] ?? identity), inputs };
    const key = keyOf(declaration);
    // a list of all for each of a thousand would take longer than all else; what is checked once more is not at its end
    if (declared.all.has(key)) declared.listed = undefined;
    else if (declared.listed !== undefined) list(declaration, declared.listed);
    declared.all.set(key, declaration);
    this.#byToken.set(definition.token, declared);
  }

  /** The others: a resource never clashes with itself, although the engine may check it several times. */
  besides(definition: ResourceDefinition, inputs: Record<string, unknown>): CheckContext["declared"] {
    const identity = identityOf(definition, inputs);
    const self = identity === undefined ? undefined : keyOf({ identity, name: String(inputs["name"] ?? identity) });
    return (token) => {
      const declared = this.#byToken.get(token);
      if (declared === undefined) return new Map();
      if (token === definition.token && self !== undefined && declared.all.has(self))
        return listOf([...declared.all].flatMap(([key, declaration]) => (key === self ? [] : [declaration])));
      return (declared.listed ??= listOf(declared.all.values()));
    };
  }
}

interface Declaration {
  identity: string;
  name: string;
  inputs: Record<string, unknown>;
}

interface Declared {
  all: Map<string, Declaration>;
  listed: Map<string, Record<string, unknown>> | undefined;
}

function keyOf({ identity, name }: Pick<Declaration, "identity" | "name">): string {
  return `${identity} ${name}`;
}

function listOf(declarations: Iterable<Declaration>): Map<string, Record<string, unknown>> {
  const listed = new Map<string, Record<string, unknown>>();
  for (const declaration of declarations) list(declaration, listed);
  return listed;
}

/** Two clusters may each have a cloudlet of one name; the second is listed under its id. */
function list({ identity, name, inputs }: Declaration, listed: Map<string, Record<string, unknown>>): void {
  listed.set(listed.has(name) ? identity : name, inputs);
}

function identityOf(definition: ResourceDefinition, inputs: Record<string, unknown>): string | undefined {
  // a field that is still unknown is absent, so the identity would be made up
  let complete = true;
  const watched = new Proxy(inputs, {
    get(target, key) {
      const value: unknown = Reflect.get(target, key);
      if (value === undefined) complete = false;
      return value;
    },
  });
  try {
    const identity = definition.identity(watched);
    return complete ? identity : undefined;
  } catch {
    return undefined;
  }
}
