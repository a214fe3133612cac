import type { CheckContext, ResourceDefinition } from "./define.ts";

/** What one run of the engine has checked so far, so that constraints may span resources. */
export class Declarations {
  readonly #byToken = new Map<string, Map<string, Declared>>();

  add(definition: ResourceDefinition, inputs: Record<string, unknown>): void {
    const identity = identityOf(definition, inputs);
    if (identity === undefined) return;
    const declared = this.#byToken.get(definition.token) ?? new Map<string, Declared>();
    const name = String(inputs["name"] ?? identity);
    // two names for one identity are two declarations that clash
    this.#byToken.set(definition.token, declared.set(`${identity} ${name}`, { identity, name, inputs }));
  }

  /** The others: a resource never clashes with itself, although the engine may check it several times. */
  besides(definition: ResourceDefinition, inputs: Record<string, unknown>): CheckContext["declared"] {
    const self = identityOf(definition, inputs);
    return (token) => {
      const others = new Map<string, Record<string, unknown>>();
      for (const { identity, ...declared } of this.#byToken.get(token)?.values() ?? []) {
        if (token === definition.token && identity === self && declared.name === (inputs["name"] ?? identity)) continue;
        // two clusters may each have a cloudlet of one name; the second is listed under its id
        others.set(others.has(declared.name) ? identity : declared.name, declared.inputs);
      }
      return others;
    };
  }
}

interface Declared {
  identity: string;
  name: string;
  inputs: Record<string, unknown>;
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
