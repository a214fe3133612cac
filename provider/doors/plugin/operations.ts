import { isDeepStrictEqual } from "node:util";
import providerPb from "@pulumi/pulumi/proto/provider_pb.js";
import type * as Messages from "@pulumi/pulumi/proto/provider_pb.js";
import { checkInputs, explainChange } from "../../core/check.ts";
import type { Context } from "../../core/context.ts";
import { Declarations } from "../../core/declarations.ts";
import type { FunctionDefinition, Issue, LocalDigests, ResourceDefinition } from "../../core/define.ts";
import { diffInputs, replacing, withOrigins, withoutIgnored, type Change } from "../../core/diff.ts";
import { CloudletError, codeOf, describeError } from "../../core/errors.ts";
import { invoke } from "../../core/invoke.ts";
import * as reconcile from "../../core/reconcile.ts";
import { possiblySecretPaths, secretPaths } from "../../core/secrets.ts";
import { isRecord, withoutNulls } from "../../core/values.ts";
import type { Reporter } from "../engineLog.ts";
import { fromStruct, toStruct, type Decoded } from "./codec.ts";
import { KeptFailure } from "./failure.ts";
import { Interruption } from "./interruption.ts";
import { parseUrn, type Subject } from "./urn.ts";

type State = Record<string, unknown>;

export interface World {
  /** For one operation. */
  openContext(report: Reporter, signal: AbortSignal): Context;
  inTurn<T>(signal: AbortSignal, work: () => Promise<T>): Promise<T>;
}

export interface PluginDoor {
  definitions: readonly ResourceDefinition[];
  functions: readonly FunctionDefinition[];
  digests: LocalDigests;
  /** Which parts of a provider's configuration are secret. */
  secretSettings: string[][];
  /** What is wrong with a provider's configuration. */
  checkSettings(given: Record<string, unknown>): Issue[];
  /** The outside world, as the configuration has it; opened when it is first needed, which in a preview is never. */
  world(given: Record<string, unknown>): () => Promise<World>;
  /** Status lines and warnings of the resource with this URN. */
  report(urn: string): Reporter;
}

/** The calls of Pulumi's provider protocol over resource definitions: translation and nothing else. */
export class Operations {
  readonly #door: PluginDoor;
  readonly #interruption = new Interruption();
  #declarations = new Declarations();
  #world: (() => Promise<World>) | undefined;

  constructor(door: PluginDoor) {
    this.#door = door;
  }

  checkConfig(request: Messages.CheckRequest): Promise<Messages.CheckResponse> {
    const { values } = fromStruct(request.getNews());
    const response = new providerPb.CheckResponse();
    response.setInputs(toStruct(values, this.#door.secretSettings));
    response.setFailuresList(this.#door.checkSettings(values).map(toFailure));
    return Promise.resolve(response);
  }

  /** Another configuration is another way to the same nodes, and never replaces what is there. */
  diffConfig(request: Messages.DiffRequest): Promise<Messages.DiffResponse> {
    const { DiffChanges } = providerPb.DiffResponse;
    const [olds, news] = [fromStruct(request.getOldInputs() ?? request.getOlds()).values, fromStruct(request.getNews()).values];
    const response = new providerPb.DiffResponse();
    response.setChanges(isDeepStrictEqual(olds, news) ? DiffChanges.DIFF_NONE : DiffChanges.DIFF_SOME);
    return Promise.resolve(response);
  }

  configure(request: Messages.ConfigureRequest): Promise<Messages.ConfigureResponse> {
    this.#interruption.reset();
    this.#world = this.#door.world(fromStruct(request.getArgs()).values);
    // what an earlier run has declared says nothing about this one
    this.#declarations = new Declarations();
    const response = new providerPb.ConfigureResponse();
    response.setAcceptsecrets(true);
    response.setAcceptresources(true);
    response.setAcceptoutputs(true);
    response.setSupportspreview(true);
    response.setSupportsAutonamingConfiguration(true);
    return Promise.resolve(response);
  }

  cancel(): void {
    this.#interruption.cancel();
  }

  async check(request: Messages.CheckRequest): Promise<Messages.CheckResponse> {
    const subject = parseUrn(request.getUrn());
    const definition = this.#find(subject.token);
    const response = new providerPb.CheckResponse();
    try {
      const news = fromStruct(request.getNews());
      // an engine that does not send the state sends the inputs of before
      const before = fromStruct(request.getOldOutputs() ?? request.getOlds()).values;
      const { inputs, issues, explanation } = await checkInputs(definition, {
        news: news.values,
        defaults: { name: nameFor(subject, request.getAutonaming(), before), owner: subject.owner },
        old: Object.keys(before).length === 0 ? undefined : before,
        declarations: this.#declarations,
        local: this.#door.digests,
      });
      if (explanation !== undefined) this.#door.report(subject.urn).note(explanation);
      response.setInputs(toStruct(inputs, secretsOf(definition, news)));
      response.setFailuresList(issues.map(toFailure));
    } catch (error) {
      // what the program passed cannot even be read
      if (codeOf(error) !== "INVALID") throw error;
      response.setFailuresList([toFailure({ path: "", message: describeError(error) })]);
    }
    return response;
  }

  diff(request: Messages.DiffRequest): Promise<Messages.DiffResponse> {
    const definition = this.#find(parseUrn(request.getUrn()).token);
    const [want, olds] = [fromStruct(request.getNews()).values, fromStruct(request.getOlds()).values];
    const have = withOrigins(definition.inputs, olds, () => fromStruct(request.getOldInputs()).values);
    const changes = withoutIgnored(diffInputs(definition.inputs, have, want), request.getIgnorechangesList());
    const explanation = changes.length > 0 ? explainChange(definition, want, have) : undefined;
    if (explanation !== undefined) this.#door.report(request.getUrn()).note(explanation);
    return Promise.resolve(toDiff(changes, definition.inStateOnly !== true));
  }

  async create(request: Messages.CreateRequest): Promise<Messages.CreateResponse> {
    const subject = parseUrn(request.getUrn());
    const definition = this.#find(subject.token);
    const inputs = fromStruct(request.getProperties());
    const response = new providerPb.CreateResponse();
    if (request.getPreview()) {
      response.setProperties(stored(definition, reconcile.preview(definition, inputs.values, undefined), inputs));
      return response;
    }
    const { id, state } = await this.#perform({ subject, definition, inputs, verb: "creating", seconds: request.getTimeout() }, (context) =>
      reconcile.create(definition, inputs.values, context),
    );
    response.setId(id);
    response.setProperties(stored(definition, state, inputs));
    return response;
  }

  async update(request: Messages.UpdateRequest): Promise<Messages.UpdateResponse> {
    const subject = parseUrn(request.getUrn());
    const definition = this.#find(subject.token);
    const [inputs, olds] = [fromStruct(request.getNews()), fromStruct(request.getOlds()).values];
    const old = withOrigins(definition.inputs, olds, () => fromStruct(request.getOldInputs()).values);
    const response = new providerPb.UpdateResponse();
    if (request.getPreview()) {
      response.setProperties(stored(definition, reconcile.preview(definition, inputs.values, old), inputs));
      return response;
    }
    const change = { id: request.getId(), inputs: inputs.values, old };
    const state = await this.#perform({ subject, definition, inputs, verb: "updating", seconds: request.getTimeout() }, (context) =>
      reconcile.update(definition, change, context),
    );
    response.setProperties(stored(definition, state, inputs));
    return response;
  }

  async read(request: Messages.ReadRequest): Promise<Messages.ReadResponse> {
    const subject = parseUrn(request.getUrn());
    const definition = this.#find(subject.token);
    const known = fromStruct(request.getProperties());
    const last = fromStruct(request.getInputs());
    const response = new providerPb.ReadResponse();
    const imported = Object.keys(known.values).length === 0;
    const id = request.getId();
    const found = await this.#perform(
      { subject, definition, inputs: known, verb: "reading", seconds: request.getTimeout() },
      async (context) => {
        if (imported) return reconcile.adopt(definition, { id, name: subject.name, owner: subject.owner }, context);
        const state = await reconcile.read(
          definition,
          withOrigins(definition.inputs, known.values, () => last.values),
          context,
        );
        return state && { id, state };
      },
    );
    // an answer without an id tells the engine that the resource is gone
    if (found === undefined) return response;
    response.setId(found.id);
    const unsaid = imported ? possiblySecretPaths(definition.inputs) : [];
    const given = { values: {}, secrets: [...known.secrets, ...last.secrets, ...unsaid] };
    response.setProperties(stored(definition, found.state, given));
    response.setInputs(stored(definition, reconcile.inputsOf(definition, found.state), given));
    return response;
  }

  async delete(request: Messages.DeleteRequest): Promise<void> {
    const subject = parseUrn(request.getUrn());
    const definition = this.#find(subject.token);
    const have = fromStruct(request.getProperties());
    await this.#perform({ subject, definition, inputs: have, verb: "deleting", seconds: request.getTimeout() }, (context) =>
      reconcile.remove(definition, have.values, context),
    );
  }

  async invoke(request: Messages.InvokeRequest): Promise<Messages.InvokeResponse> {
    const token = request.getTok();
    const definition = this.#door.functions.find((known) => known.token === token);
    if (!definition)
      throw new CloudletError("INVALID", `pulumi-cloudlet has no ${token}`, {
        fix: "correct the function's name, or install a newer version",
      });
    const asked = { given: fromStruct(request.getArgs()).values, preview: request.getPreview() };
    const world = await this.#configured();
    const answer = await this.#interruption.limit({ what: token, seconds: 0 }, (signal) =>
      // nothing that lasts, so nothing to report
      invoke(definition, asked, () => world.openContext(silent, signal)),
    );
    const response = new providerPb.InvokeResponse();
    if ("issues" in answer) response.setFailuresList(answer.issues.map(toFailure));
    else response.setReturn(toStruct(plain(answer.result), secretPaths(definition.outputs)));
    return response;
  }

  #find(token: string): ResourceDefinition {
    const found = this.#door.definitions.find((definition) => definition.token === token);
    if (found) return found;
    throw new CloudletError("INVALID", `pulumi-cloudlet has no ${token}`, { fix: "correct the type's name, or install a newer version" });
  }

  #configured(): Promise<World> {
    if (this.#world) return this.#world();
    throw new CloudletError("BUG", "the engine began without configuring the provider");
  }

  async #perform<T>(task: Task, operation: (context: Context) => Promise<T>): Promise<T> {
    const { subject, definition, inputs, verb, seconds } = task;
    const world = await this.#configured();
    try {
      return await this.#interruption.limit({ what: `${verb} "${subject.name}"`, seconds }, (signal) =>
        world.inTurn(signal, () => operation(world.openContext(this.#door.report(subject.urn), signal))),
      );
    } catch (error) {
      if (!(error instanceof reconcile.PartialFailure)) throw error;
      const { id, state, reasons } = error;
      const kept = { properties: stored(definition, state, inputs), inputs: stored(definition, inputs.values, inputs) };
      throw new KeptFailure({ id, reasons, ...kept });
    }
  }
}

interface Task {
  subject: Subject;
  definition: ResourceDefinition;
  inputs: Decoded;
  verb: string;
  seconds: number;
}

/** The Pulumi name, unless `pulumi:autonaming` says otherwise; what is there keeps the name that it was made with. */
function nameFor(subject: Subject, asked: Autonaming | undefined, before: Record<string, unknown>): unknown {
  if (asked === undefined) return subject.name;
  // an absent name is then an issue like any other
  if (asked.getMode() === providerPb.CheckRequest.AutonamingOptions.Mode.DISABLE) return undefined;
  return before["name"] ?? asked.getProposedName();
}
type Autonaming = Messages.CheckRequest.AutonamingOptions;

/** Secret is what the schema says, and what the program says. */
function secretsOf(definition: ResourceDefinition, given: Decoded): string[][] {
  return [...secretPaths(definition.inputs), ...secretPaths(definition.outputs), ...given.secrets];
}

/** State as the engine keeps it: Pulumi takes null and absent for the same. */
function stored(definition: ResourceDefinition, state: State, given: Decoded): ReturnType<typeof toStruct> {
  return toStruct(plain(state), secretsOf(definition, given));
}

function plain(state: State): State {
  const kept = withoutNulls(state);
  return isRecord(kept) ? kept : {};
}

const silent: Reporter = { status: () => undefined, warn: () => undefined, note: () => undefined };

/** The path stands in the reason, since the engine prints the value of a property that is named, secrets included. */
function toFailure({ path, message }: Issue): Messages.CheckFailure {
  const failure = new providerPb.CheckFailure();
  failure.setReason(path === "" ? message : `${path}: ${message}`);
  return failure;
}

function toDiff(changes: Change[], deleteBeforeReplace: boolean): Messages.DiffResponse {
  const { DiffChanges } = providerPb.DiffResponse;
  const response = new providerPb.DiffResponse();
  response.setChanges(changes.length > 0 ? DiffChanges.DIFF_SOME : DiffChanges.DIFF_NONE);
  response.setDeletebeforereplace(deleteBeforeReplace);
  response.setReplacesList(replacing(changes));
  response.setHasdetaileddiff(true);
  for (const { path, kind, replaces } of changes) {
    const entry = new providerPb.PropertyDiff();
    entry.setKind(kindsOf[kind][replaces ? "replacing" : "inPlace"]);
    response.getDetaileddiffMap().set(path, entry);
  }
  return response;
}

const { Kind } = providerPb.PropertyDiff;
const kindsOf = {
  add: { inPlace: Kind.ADD, replacing: Kind.ADD_REPLACE },
  delete: { inPlace: Kind.DELETE, replacing: Kind.DELETE_REPLACE },
  update: { inPlace: Kind.UPDATE, replacing: Kind.UPDATE_REPLACE },
};
