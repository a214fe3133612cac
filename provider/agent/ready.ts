import http from "node:http";
import net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { CloudletError } from "../core/errors.ts";
import type { Ready } from "./protocol.ts";

export interface ReadyTarget {
  id: string;
  address: string;
  ready: Ready;
  /** Last lines of the console. */
  log(lines: number): Promise<string>;
}

const probeMillis = 2_000;
const pauseMillis = 100;
const searchedLines = 2_000;
const shownLines = 20;

/** Waits until the application answers; a TIMEOUT carries the last lines of the console. */
export async function waitReady(target: ReadyTarget, signal: AbortSignal): Promise<void> {
  const end = Date.now() + target.ready.timeoutSeconds * 1000;
  let missing = "";
  do {
    missing = (await notReady(target, signal)) ?? "";
    if (missing === "") return;
    await sleep(pauseMillis, undefined, { signal });
  } while (Date.now() < end);
  throw new CloudletError(
    "TIMEOUT",
    `${target.id} was not ready within ${String(target.ready.timeoutSeconds)} s: ${missing}; ${await consoleEnd(target)}`,
  );
}

/** For messages on what does not get ready. */
export async function consoleEnd({ log }: Pick<ReadyTarget, "log">): Promise<string> {
  const lines = (await log(shownLines).catch(() => "")).trim();
  return `its console ends with:\n${lines === "" ? "(nothing)" : lines}`;
}

/** undefined = ready now; else what is missing. */
export async function notReady({ ready, address, log }: ReadyTarget, signal: AbortSignal): Promise<string | undefined> {
  signal.throwIfAborted();
  if (ready.tcp !== undefined && !(await answersTcp(address, ready.tcp.port)))
    return `nothing listens on ${address}:${String(ready.tcp.port)}`;
  if (ready.http !== undefined) {
    const found = await httpStatus(address, ready.http);
    if (found === undefined || found >= 400)
      return `http://${address}:${String(ready.http.port)}${ready.http.path} ${found === undefined ? "does not answer" : `answers ${String(found)}`}`;
  }
  if (ready.log !== undefined && !new RegExp(ready.log, "m").test(await log(searchedLines)))
    return `the console has no line that matches ${ready.log}`;
  return undefined;
}

function answersTcp(host: string, port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const socket = net.connect({ host, port, timeout: probeMillis });
    const end = (answer: boolean) => () => {
      socket.destroy();
      resolve(answer);
    };
    socket.once("connect", end(true)).once("timeout", end(false)).once("error", end(false));
  });
}

function httpStatus(host: string, { port, path }: { port: number; path: string }): Promise<number | undefined> {
  return new Promise((resolve) => {
    const request = http.get(
      { host, port, path, agent: false, timeout: probeMillis, signal: AbortSignal.timeout(2 * probeMillis) },
      (response) => {
        response.resume();
        resolve(response.statusCode);
      },
    );
    request.once("timeout", () => request.destroy());
    request.once("error", () => {
      resolve(undefined);
    });
  });
}
