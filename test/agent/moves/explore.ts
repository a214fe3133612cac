/** Something that may happen next: its name, and the state after it. */
export type Step<State> = [name: string, state: State];

export interface Explored<State> {
  states: Map<string, State>;
  /** For each state, those from which one step leads there, and which step. */
  before: Map<string, [from: string, name: string][]>;
  /** How a state was first reached. */
  way: Map<string, [from: string, name: string]>;
}

/** A model that has no end would take all memory of the machine. */
const mostStates = 400_000;

/** Every state that any order of steps can reach. */
export function explore<State>(start: State, next: (state: State) => Step<State>[]): Explored<State> {
  const first = JSON.stringify(start);
  const explored: Explored<State> = { states: new Map([[first, start]]), before: new Map(), way: new Map() };
  for (const [key, state] of explored.states) {
    if (explored.states.size > mostStates) throw new Error(`there are more than ${mostStates} states, such as ${key}`);
    for (const [name, reached] of next(state)) {
      const to = JSON.stringify(reached);
      const before = explored.before.get(to);
      if (before === undefined) explored.before.set(to, [[key, name]]);
      else before.push([key, name]);
      if (explored.states.has(to)) continue;
      explored.states.set(to, reached);
      explored.way.set(to, [key, name]);
    }
  }
  return explored;
}

/** The shortest stories that lead to states which are wrong, for the message of a failure. */
export function offenders<State>(explored: Explored<State>, wrong: (state: State, key: string) => boolean): string[] {
  const found: string[] = [];
  for (const [key, state] of explored.states) {
    if (wrong(state, key)) found.push(story(explored, key));
    if (found.length === 3) break;
  }
  return found;
}

/** States from which some way leads to one that is as wished, by steps that are allowed. */
export function leading<State>(
  { states, before }: Explored<State>,
  wished: (state: State) => boolean,
  allowed: (step: string) => boolean = () => true,
): Set<string> {
  const found = new Set([...states].filter(([, state]) => wished(state)).map(([key]) => key));
  for (const key of found) for (const [earlier, name] of before.get(key) ?? []) if (allowed(name)) found.add(earlier);
  return found;
}

function story<State>({ way }: Explored<State>, key: string): string {
  const names: string[] = [];
  for (let at = way.get(key); at !== undefined; at = way.get(at[0])) names.unshift(at[1]);
  return names.join(", ");
}
