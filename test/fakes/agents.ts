import { createHash } from "node:crypto";
import { Readable } from "node:stream";
import type { AgentClient } from "../../provider/agent/clientTypes.ts";
import type {
  ImageStatus,
  InstanceStatus,
  Login,
  Offer,
  OverlayStatus,
  PreseedStatus,
  Verb,
  VerbArgs,
  VerbResult,
} from "../../provider/agent/protocol.ts";
import type { Context, LocalBlob } from "../../provider/core/context.ts";
import { CloudletError } from "../../provider/core/errors.ts";

export const digestOf = (text: string): string => createHash("sha256").update(text).digest("hex");

/** Of the operator's files, by their paths. */
export const fakeDigests = {
  digestFile: async (path: string) => digestOf(path),
  digestDirectory: async (path: string) => digestOf(path),
  digestOverlay: async (path: string) => digestOf(path),
};

const certificate = "c".repeat(64);

/** One node as the resources see it through its agent: blobs, kept images and overlays, cloudlets; all in memory. */
export class FakeNode {
  readonly name: string;
  readonly blobs = new Set<string>();
  readonly images = new Map<string, ImageStatus>();
  readonly overlays = new Map<string, OverlayStatus>();
  /** Ids of cloudlets of which something of their own is there. */
  readonly copies = new Set<string>();
  readonly preseeds = new Map<string, PreseedStatus & { digests: string[] }>();
  /** What builds were given to log in with. */
  readonly logins: Login[] = [];
  readonly instances = new Map<string, InstanceStatus>();
  /** Verbs and uploads, in order. */
  readonly calls: string[] = [];
  /** Arguments of the last call of each verb. */
  readonly last = new Map<Verb, unknown>();
  silent = false;
  /** Verbs that fail. */
  readonly breaks = new Set<Verb>();
  readonly #world: FakeWorld;

  constructor(name: string, world: FakeWorld) {
    this.name = name;
    this.#world = world;
  }

  perform(verb: Verb, args: never): unknown {
    this.calls.push(verb);
    this.last.set(verb, args);
    if (this.breaks.has(verb)) throw new CloudletError("FAILED", `${verb} broke on ${this.name}`);
    const doing: Partial<{ [V in Verb]: (args: VerbArgs<V>) => unknown }> = {
      "blobs.offer": () => ({ addresses: [], port: 7443, certificate, token: "t" }),
      "blobs.fetch": ({ digests, offers }) => this.#fetch(digests, offers),
      "image.keep": (wanted) => this.#keepImage(wanted),
      "image.release": ({ name, owner }) => void this.images.delete(`${owner} ${name}`),
      "overlay.build": (wanted) => this.#build(wanted),
      "overlay.keep": ({ name, owner, digest }) => this.#keepOverlay(name, owner, digest),
      "overlay.release": ({ name, owner }) => void this.overlays.delete(`${owner} ${name}`),
      "preseed.apply": (wanted) => this.#preseed(wanted),
      "instance.copy": () => ({}),
      "preseed.release": ({ id, owner }) => void this.preseeds.delete(`${owner} ${id}`),
      "instance.apply": ({ spec }) => void this.instances.set(spec.id, statusOf(spec)),
      "instance.remove": ({ id }) => void this.instances.delete(id),
    };
    const does = doing[verb] as ((args: never) => unknown) | undefined;
    if (!does) throw new Error(`the fake node has no ${verb}`);
    return does(args);
  }

  #fetch(digests: string[], offers: Offer[]): unknown {
    const from = offers.find(({ node }) => digests.every((digest) => this.#world.node(node).blobs.has(digest)));
    if (!from) throw new CloudletError("NOT_FOUND", "no offer has it");
    for (const digest of digests) this.blobs.add(digest);
    return { bytesTransferred: 1000, bytesAvoided: 0, from: [from.node] };
  }

  #preseed({ id, owner, base, build, overlay, offers }: VerbArgs<"preseed.apply">): VerbResult<"preseed.apply"> {
    const digests = [base, build, overlay].flatMap((digest) => digest ?? []);
    const missing = digests.filter((digest) => !this.blobs.has(digest));
    const before = this.preseeds.get(`${owner} ${id}`);
    const hasCopy = this.copies.has(id);
    if (before !== undefined && missing.length === 0) return { ...before, hasCopy };
    if (missing.length > 0) this.#fetch(missing, offers);
    const cost = { bytesTransferred: 1000 * missing.length, bytesAvoided: 1000 * (digests.length - missing.length), totalMillis: 5 };
    this.preseeds.set(`${owner} ${id}`, { ...cost, digests });
    return { ...cost, hasCopy };
  }

  #keepImage({ name, owner, digest, arrival }: VerbArgs<"image.keep">): ImageStatus {
    if (!this.blobs.has(digest)) throw new CloudletError("NOT_FOUND", "it is not in the store");
    const earlier = this.images.get(`${owner} ${name}`)?.arrival;
    const status: ImageStatus = {
      digest,
      kind: "kvm",
      format: "qcow2",
      bytes: 1000,
      virtualBytes: 4096,
      owners: [owner],
      arrival: arrival ?? earlier,
    };
    this.images.set(`${owner} ${name}`, status);
    return status;
  }

  #build({ name, owner, makings, login }: VerbArgs<"overlay.build">): OverlayStatus {
    if (login) this.logins.push(login);
    if (!this.blobs.has(makings.base)) throw new CloudletError("NOT_FOUND", "its base is not in the store");
    this.calls.push(`built ${name}`);
    const digest = digestOf(`${this.name} ${String(this.#world.built.size)} ${JSON.stringify(makings)}`);
    const { kind, base, parent, resources } = makings;
    this.#world.built.set(digest, { digest, kind, base, parent, resources, bytes: 500, diskBytes: 4096, memoryBytes: 8192 });
    this.blobs.add(digest);
    return this.#keepOverlay(name, owner, digest);
  }

  #keepOverlay(name: string, owner: string, digest: string): OverlayStatus {
    const status = this.#world.built.get(digest);
    if (!status || !this.blobs.has(digest)) throw new CloudletError("NOT_FOUND", "it is not in the store");
    this.overlays.set(`${owner} ${name}`, status);
    return status;
  }
}

function statusOf(spec: InstanceStatus["spec"]): InstanceStatus {
  return {
    spec,
    ownership: { epoch: 1, role: "owner" },
    status: "running",
    ready: true,
    address: "10.87.0.2",
    imageDigest: spec.base.digest,
    accelerator: "tcg",
    console: "",
  };
}

/** Nodes by name, which are the hosts of their connections too, and the operator's machine, where a file's content is its path. */
export class FakeWorld {
  readonly built = new Map<string, OverlayStatus>();
  /** What the operator's machine was asked for. */
  readonly acquired: string[] = [];
  readonly said: string[] = [];
  readonly #nodes = new Map<string, FakeNode>();

  node(name: string): FakeNode {
    const node = this.#nodes.get(name) ?? new FakeNode(name, this);
    this.#nodes.set(name, node);
    return node;
  }

  context(): Context {
    const absent = (): never => {
      throw new Error("the fake world has none");
    };
    const acquire = (what: string): Promise<LocalBlob> => {
      this.acquired.push(what);
      return Promise.resolve({ digest: digestOf(what), bytes: what.length, stream: () => Readable.from([what]) });
    };
    const host = { listenTcp: () => Promise.resolve({ port: 4000, close: () => Promise.resolve() }) };
    return {
      signal: AbortSignal.timeout(60_000),
      status: (text) => void this.said.push(text),
      warn: (text) => void this.said.push(text),
      host: (connection) => (this.node(connection.host).silent ? silence(connection.host) : Promise.resolve(host as never)),
      agent: (connection) =>
        this.node(connection.host).silent ? silence(connection.host) : Promise.resolve(this.#client(connection.host)),
      commission: { apply: absent, observe: absent, remove: absent },
      lxd: absent,
      local: {
        open: acquire,
        openDirectory: acquire,
        acquire: (source) => acquire("file" in source ? source.file : JSON.stringify(source)),
        async acquireOverlay(source) {
          const blob = await acquire("file" in source ? source.file : source.image);
          return { digest: blob.digest, blobs: [blob] };
        },
      },
    };
  }

  #client(name: string): AgentClient {
    const node = this.node(name);
    const client = {
      label: `agent on ${name}`,
      hasBlob: (digest: string) => Promise.resolve(node.blobs.has(digest)),
      putBlob: async ({ digest, bytes }: { digest: string; bytes: number }) => {
        node.calls.push(`put ${String(bytes)}`);
        node.blobs.add(digest);
      },
      image: (image: string, owner: string) => Promise.resolve(node.images.get(`${owner} ${image}`)),
      overlay: (overlay: string, owner: string) => Promise.resolve(node.overlays.get(`${owner} ${overlay}`)),
      preseed: async (id: string, owner: string): Promise<PreseedStatus | undefined> => {
        const { digests, ...cost } = node.preseeds.get(`${owner} ${id}`) ?? { digests: undefined };
        return digests?.every((digest) => node.blobs.has(digest)) ? (cost as PreseedStatus) : undefined;
      },
      instance: (id: string) => Promise.resolve(node.instances.get(id)),
      run: async (verb: Verb, args: never) => node.perform(verb, args),
    };
    return client as unknown as AgentClient;
  }
}

function silence(host: string): Promise<never> {
  return Promise.reject(new CloudletError("UNREACHABLE", `${host} does not answer`));
}
