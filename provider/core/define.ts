import type { z } from "zod";
import type { Context } from "./context.ts";

/** What is wrong with an input: a property path in Pulumi's notation (`ports[0].hostPort`) and a text that says what to do. */
export interface Issue {
  path: string;
  message: string;
}

/** Metadata that `.meta()` puts on an input field, always last in the chain. */
export interface FieldMeta {
  /** A change of this field replaces the resource. */
  replaces?: boolean;
  /** Secret wherever it appears. */
  secret?: boolean;
  /** May hold what only the program knows to be secret: an import, which has no program, encrypts it. */
  mayBeSecret?: boolean;
  /** A list whose order means nothing. */
  set?: boolean;
  /** Looked at by constraints and then dropped, so that it is neither stored nor compared. */
  checkOnly?: boolean;
  /** Where the program leaves it out, whatever it became is right. */
  computed?: boolean;
  /** Says where what `digest` beside it identifies comes from: no difference while that is the same, nor after an import, which cannot know it. */
  origin?: boolean;
  /** Only what the next operation needs to reach others: stored, never compared. */
  carried?: boolean;
  /** Filled in by the SDK classes, not by users; left out of the docs. */
  internal?: boolean;
}

/** What check may look at besides the inputs. Nothing here reaches a node. */
export interface CheckContext extends LocalDigests {
  /** Inputs of the resources of one type that this run has checked before, by resource name. */
  declared(token: string): ReadonlyMap<string, Record<string, unknown>>;
  /** Names of the fields that have a value, those included whose value is still unknown. */
  given: ReadonlySet<string>;
}

/** What is on the operator's machine. */
export interface LocalDigests {
  /** SHA-256 of a file on the operator's machine; NOT_FOUND where it is missing. */
  digestFile(path: string): Promise<string>;
  /** SHA-256 of the deterministic tar of a directory on the operator's machine. */
  digestDirectory(path: string): Promise<string>;
  /** Digest of the overlay that was exported to a file on the operator's machine. */
  digestOverlay(path: string): Promise<string>;
}

/** What is known of a resource that is to be imported. */
export interface Adopted {
  /** As the user gave it. */
  id: string;
  /** The Pulumi name. */
  name: string;
  /** `project/stack` of who imports it. */
  owner: string;
}

type Shape = z.ZodObject;

/**
 * One resource. State is `inputs` as declared plus `outputs` as observed. The core derives everything else:
 * check (parse, defaults, constraints), diff (from metadata), create and update (apply, then observe and compare),
 * read (observe), secrets, schema.json and the docs page.
 */
export interface ResourceDefinition<Inputs extends Shape = Shape, Outputs extends Shape = Shape> {
  /** `cloudlet:index:Node` */
  token: string;
  /** One or two sentences for the docs page. */
  description: string;
  inputs: Inputs;
  outputs: Outputs;
  /** Nothing on any node: a replacement need not wait for the deletion, which would take dependants along. */
  inStateOnly?: boolean;
  /** The id: readable, stable, sufficient for import; never says where a cloudlet runs. */
  identity(inputs: z.infer<Inputs>): string;
  /** Completes inputs from the operator's machine (digests), before constraints are checked. Values may be missing where they are unknown. */
  complete?(inputs: Partial<z.infer<Inputs>>, context: CheckContext): Promise<{ inputs: Partial<z.infer<Inputs>>; issues: Issue[] }>;
  /** Constraints of the domain, as far as program and state suffice to know. Unknown fields are absent. `old` is the state before, if any. */
  constraints?(
    inputs: Partial<z.infer<Inputs>>,
    context: CheckContext,
    old: (Partial<z.infer<Inputs>> & Partial<z.infer<Outputs>>) | undefined,
  ): Issue[] | Promise<Issue[]>;
  /** What a preview should say about a new resource, or about a change beyond the properties that differ. Unknown fields are absent. */
  explain?(want: Partial<z.infer<Inputs>>, old: Partial<z.infer<Inputs>> | undefined): string | undefined;
  /** What it should say about a change in view of the whole state, outputs included, which check does not see. */
  explainChange?(want: Partial<z.infer<Inputs>>, have: Partial<z.infer<Inputs>> & Partial<z.infer<Outputs>>): string | undefined;
  /** Outputs that follow from inputs, or from the state before, with certainty: what a preview shows of them. Unknown fields are absent. */
  predict?(want: Partial<z.infer<Inputs>>, old: Partial<z.infer<Inputs> & z.infer<Outputs>> | undefined): Partial<z.infer<Outputs>>;
  /** What is there under the id that a user gives to `pulumi import`, which may say more than the id in the state: where it runs, and how to get there. */
  adopt?(wanted: Adopted, context: Context): Promise<(z.infer<Inputs> & z.infer<Outputs>) | undefined>;
  /** What is true on the node now. undefined = the node answered and has none; a silent node throws UNREACHABLE. */
  observe(known: z.infer<Inputs> & Partial<z.infer<Outputs>>, context: Context): Promise<(z.infer<Inputs> & z.infer<Outputs>) | undefined>;
  /**
   * Makes it true: idempotent, resumable, the same for create and update. `old` is the state before, if any. Returns
   * what only it can know, which `observe` then finds among what is known.
   */
  apply(
    want: z.infer<Inputs>,
    old: (z.infer<Inputs> & Partial<z.infer<Outputs>>) | undefined,
    context: Context,
  ): Promise<Partial<z.infer<Outputs>> | void>;
  /** Paths of inputs that apply need not bring about, where it warns of it: they show as changes until a later run has. */
  mayLag?: readonly string[];
  /** Removes it; already gone is fine. */
  remove(have: z.infer<Inputs> & Partial<z.infer<Outputs>>, context: Context): Promise<void>;
}

export function defineResource<Inputs extends Shape, Outputs extends Shape>(
  definition: ResourceDefinition<Inputs, Outputs>,
): ResourceDefinition<Inputs, Outputs> {
  return definition;
}

/** What can be asked of nodes, or done there, besides declaring resources. */
export interface FunctionDefinition<Inputs extends Shape = Shape, Outputs extends Shape = Shape> {
  /** `cloudlet:index:getNode` */
  token: string;
  /** One or two sentences for the docs. */
  description: string;
  inputs: Inputs;
  outputs: Outputs;
  /** The answer in a preview of what must not run there; without it a preview asks like everybody. */
  inPreview?: z.infer<Outputs>;
  run(inputs: z.infer<Inputs>, context: Context): Promise<z.infer<Outputs>>;
}

export function defineFunction<Inputs extends Shape, Outputs extends Shape>(
  definition: FunctionDefinition<Inputs, Outputs>,
): FunctionDefinition<Inputs, Outputs> {
  return definition;
}
