import type * as pulumi from "@pulumi/pulumi";
import type { Context } from "../../core/context.ts";
import { checkInputs, explainChange } from "../../core/check.ts";
import type { Declarations } from "../../core/declarations.ts";
import type { Issue, LocalDigests, ResourceDefinition } from "../../core/define.ts";
import { diffInputs, replacing } from "../../core/diff.ts";
import { CloudletError, describeError } from "../../core/errors.ts";
import * as reconcile from "../../core/reconcile.ts";
import { isRecord, withoutNulls } from "../../core/values.ts";

type Props = Record<string, unknown>;

export interface DynamicDoor {
  definitions: readonly ResourceDefinition[];
  declarations: Declarations;
  digests: LocalDigests;
  /** A context for one operation on the resource that `subject` names. */
  open(subject: string): Context;
  /** Tells a reviewer something about a change, in previews too. */
  note(subject: string, text: string): void;
}

/** Pulumi's dynamic provider interface over resource definitions, by token: translation and nothing else. */
export function dynamicHooks({ definitions, declarations, digests, open, note }: DynamicDoor) {
  const find = (token: string): ResourceDefinition => definitionOf(definitions, token);

  return (token: string): pulumi.dynamic.ResourceProvider => ({
    async check(olds: Props, news: Props) {
      const definition = find(token);
      const old = Object.keys(olds).length === 0 ? undefined : plain(olds);
      const { inputs, issues, explanation } = await checkInputs(definition, { news: plain(news), old, declarations, local: digests });
      if (explanation !== undefined) note(subjectOf(definition, news), explanation);
      return { inputs, failures: issues.map(toFailure) };
    },

    diff(_id, olds: Props, news: Props) {
      const definition = find(token);
      const changes = diffInputs(definition.inputs, olds, news);
      const explanation = changes.length > 0 ? explainChange(definition, plain(news), plain(olds)) : undefined;
      if (explanation !== undefined) note(subjectOf(definition, news), explanation);
      // made by the plugin: an update stores the provider's text, without which nothing could be read or deleted
      const taken = providerKey in news && !(providerKey in olds);
      return Promise.resolve({
        changes: changes.length > 0 || taken,
        replaces: replacing(changes),
        deleteBeforeReplace: definition.inStateOnly !== true,
      });
    },

    create: (inputs: Props) =>
      translated(inputs, async () => {
        const definition = find(token);
        const wanted = plain(inputs);
        const { id, state } = await reconcile.create(definition, wanted, open(subjectOf(definition, wanted)));
        return { id, outs: stored(state) };
      }),

    read: (id, props: Props = {}) =>
      translated(props, async () => {
        const definition = find(token);
        const state = await reconcile.read(definition, plain(props), open(`${definition.token} "${id}"`));
        // an empty id tells the engine that the resource is gone
        if (state === undefined) return { id: "", props: {} };
        return { id, props: stored(state), inputs: stored(reconcile.inputsOf(definition, state)) };
      }),

    update: (id, olds: Props, news: Props) =>
      translated(news, async () => {
        const definition = find(token);
        const change = { id, old: plain(olds), inputs: plain(news) };
        return { outs: stored(await reconcile.update(definition, change, open(subjectOf(definition, change.inputs)))) };
      }),

    delete: (_id, props: Props) =>
      translated(props, async () => {
        const definition = find(token);
        const have = plain(props);
        await reconcile.remove(definition, have, open(subjectOf(definition, have)));
      }),
  });
}

function definitionOf(definitions: readonly ResourceDefinition[], token: string): ResourceDefinition {
  const found = definitions.find((definition) => definition.token === token);
  if (found) return found;
  throw new CloudletError("BUG", `this version of pulumi-cloudlet has no ${token}`, {
    fix: "install the version that made this resource, or a newer one",
  });
}

/** The path stands in the reason, since the engine prints the value of a property that is named, secrets included. */
function toFailure({ path, message }: Issue): { property: string; reason: string } {
  return { property: "", reason: path === "" ? message : `${path}: ${message}` };
}

const providerKey = "__provider";

function plain(props: Props): Props {
  return Object.fromEntries(Object.entries(props).filter(([key]) => key !== providerKey));
}

/** Pulumi's encoding has no undefined. */
function stored(state: Props): Props {
  const kept = withoutNulls(state);
  return isRecord(kept) ? kept : {};
}

function subjectOf(definition: ResourceDefinition, inputs: Props): string {
  const kind = definition.token.split(":").at(-1) ?? definition.token;
  return `${kind.charAt(0).toLowerCase()}${kind.slice(1)} "${definition.identity(inputs)}"`;
}

async function translated<T>(props: Props, operation: () => Promise<T>): Promise<T> {
  try {
    return await operation();
  } catch (error) {
    if (!(error instanceof reconcile.PartialFailure)) throw toError(describeError(error));
    // without the provider's text in the kept state, neither delete nor read could run later
    const properties = { ...stored(error.state), [providerKey]: props[providerKey] };
    throw Object.assign(toError(error.message), { id: error.id, properties, reasons: error.reasons });
  }
}

// pulumi prints an error's stack beside its message, and users have no use for it
function toError(message: string): Error {
  const error = new Error(message);
  error.stack = "";
  return error;
}
