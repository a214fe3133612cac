import { createHash } from "node:crypto";
import { CloudletError } from "../core/errors.ts";
import { dial } from "./dial.ts";
import type { Access } from "./exec.ts";
import { currentOperator, type Operator } from "./operator.ts";
import { createRemoteHost, type Lease } from "./remoteHost.ts";
import { needsSudo } from "./sudo.ts";
import { resolveTarget } from "./target.ts";
import type { ConnectionSettings, RemoteHost } from "./types.ts";

export interface HostPool {
  /** The host, connected: callers with the same settings share one connection, and it is dialled again when it was lost. */
  host(settings: ConnectionSettings, signal?: AbortSignal): Promise<RemoteHost>;
  /** Ends all connections; a later use dials again. */
  closeAll(): Promise<void>;
}

export interface PoolOptions {
  operator?: () => Operator;
  /** How long an unused connection stays open. Default 15 000. */
  idleMillis?: number;
}

/** One pool is meant to serve a whole process. */
export function createHostPool({ operator = () => currentOperator(), idleMillis = 15_000 }: PoolOptions = {}): HostPool {
  const entries = new Map<string, Entry>();
  return {
    async host(settings, signal) {
      const key = keyOf(settings);
      const entry = entries.get(key) ?? new Entry(settings, operator, idleMillis);
      entries.set(key, entry);
      const { link, release } = await entry.lease(signal);
      release();
      return createRemoteHost(link, (again) => entry.lease(again));
    },
    closeAll() {
      for (const entry of entries.values()) entry.close();
      entries.clear();
      return Promise.resolve();
    },
  };
}

/** A digest, so that no secret lies about as the key of a map. */
function keyOf(settings: ConnectionSettings): string {
  const sorted = (value: object): unknown[] =>
    Object.entries(value)
      .filter(([, part]) => part !== undefined)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([name, part]: [string, unknown]) => [name, typeof part === "object" && part !== null ? sorted(part) : part]);
  return createHash("sha256")
    .update(JSON.stringify(sorted(settings)))
    .digest("hex");
}

interface Dialling {
  result: Promise<Access>;
  abort: AbortController;
  waiters: number;
}

/** The connection of one node: at most one at a time. */
class Entry {
  readonly #settings: ConnectionSettings;
  readonly #operator: () => Operator;
  readonly #idleMillis: number;
  readonly #users = new Set<symbol>();
  /** Those users who keep the process alive. */
  readonly #holders = new Set<symbol>();
  #access: Access | undefined;
  #dialling: Dialling | undefined;
  #idle: NodeJS.Timeout | undefined;

  constructor(settings: ConnectionSettings, operator: () => Operator, idleMillis: number) {
    this.#settings = settings;
    this.#operator = operator;
    this.#idleMillis = idleMillis;
  }

  async lease(signal?: AbortSignal): Promise<Lease> {
    clearTimeout(this.#idle);
    const access = this.#access?.link.alive ? this.#access : await this.#share(signal);
    const user = Symbol();
    clearTimeout(this.#idle);
    this.#users.add(user);
    const hold = (on: boolean): void => {
      if (on && this.#users.has(user)) this.#holders.add(user);
      else this.#holders.delete(user);
      access.link.hold(this.#holders.size > 0);
    };
    const release = (): void => {
      hold(false);
      if (this.#users.delete(user) && this.#users.size === 0) this.#rest();
    };
    hold(true);
    return { ...access, hold, release };
  }

  close(): void {
    clearTimeout(this.#idle);
    this.#dialling?.abort.abort();
    this.#access?.link.end();
    this.#access = undefined;
  }

  #rest(): void {
    clearTimeout(this.#idle);
    this.#idle = setTimeout(() => this.close(), this.#idleMillis).unref();
  }

  /** All who ask at the same time wait for one dial; it ends early when all of them gave up. */
  async #share(signal: AbortSignal | undefined): Promise<Access> {
    const dialling = (this.#dialling ??= this.#start());
    dialling.waiters += 1;
    try {
      return await orAborted(dialling.result, this.#settings.host, signal);
    } finally {
      dialling.waiters -= 1;
      if (dialling.waiters === 0) dialling.abort.abort();
    }
  }

  #start(): Dialling {
    const abort = new AbortController();
    const result = this.#connect(abort.signal).finally(() => {
      this.#dialling = undefined;
    });
    // each waiter sees the rejection; one without waiters is nobody's
    result.catch(() => undefined);
    return { result, abort, waiters: 0 };
  }

  async #connect(signal: AbortSignal): Promise<Access> {
    const target = await resolveTarget(this.#settings, { operator: this.#operator(), signal });
    const link = await dial(target, signal);
    try {
      this.#access = { link, sudo: await needsSudo(link, signal) };
      return this.#access;
    } catch (error) {
      link.end();
      throw error;
    }
  }
}

function orAborted<T>(work: Promise<T>, host: string, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return work;
  return new Promise<T>((resolve, reject) => {
    const onAbort = (): void => reject(new CloudletError("ABORTED", `connecting to ${host} was cancelled`));
    if (signal.aborted) onAbort();
    signal.addEventListener("abort", onAbort, { once: true });
    work.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}
