import { createReadStream } from "node:fs";
import { posix } from "node:path";
import type { InstanceSpec } from "../../agent/protocol.ts";
import { CloudletError } from "../../core/errors.ts";
import type { Rest } from "../../transport/types.ts";
import type { Guest, Progress } from "../types.ts";
import { execute } from "./exec.ts";
import { makeDirectory, makeParents, removeTree, writeFile, type Files } from "./files.ts";
import { buildKey } from "./mapping.ts";
import { deadlines } from "./operations.ts";
import { unpackEntry } from "./state.ts";
import { readTar } from "./tarStreams.ts";

/** Where an application lives in its container: `app` is a link to the version in use. */
const home = "/opt/cloudlet";
export const appLog = "/var/log/cloudlet-app.log";

type Build = NonNullable<InstanceSpec["build"]>;

const supervisor = `#!/bin/sh
# keeps one application running
echo $$ >${home}/app.pid
while :; do
  cd ${home}/app && sh -c "$(cat ${home}/start)"
  echo "cloudlet: the application ended with exit code $?, it is started again in a second"
  sleep 1
done
`;

// a process id alone may meanwhile be somebody else's
const findSupervisor = `p=$(cat ${home}/app.pid 2>/dev/null) && tr '\\0' ' ' <"/proc/$p/cmdline" 2>/dev/null | grep -q ${home}/supervise`;
const startScript = `if ${findSupervisor}; then exit 0; fi
mkdir -p /var/log && cd ${home} && { setsid sh ${home}/supervise </dev/null >>${appLog} 2>&1 & }`;
const stopScript = `${findSupervisor} || exit 0
kill -TERM "-$p"
i=0; while [ $i -lt 50 ] && kill -0 "-$p" 2>/dev/null; do sleep 0.1; i=$((i+1)); done
kill -KILL "-$p" 2>/dev/null
rm -f ${home}/app.pid`;

/** Brings a new version into a running container and starts it; until its command has succeeded the old version runs on. */
export async function applyBuild(rest: Rest, guest: Guest, progress: Progress): Promise<void> {
  const { build } = guest.spec;
  if (build === undefined || guest.buildPath === undefined) return;
  const files: Files = { rest, guest: guest.name, signal: progress.signal };
  const version = posix.join(home, "versions", buildKey(build));
  progress.status(`building ${build.digest.slice(0, 12)} in ${guest.name}`);
  try {
    await unpack(files, { tar: guest.buildPath, version }, progress);
    await runCommand(rest, guest, { build, version, progress });
  } catch (error) {
    await removeTree({ ...files, signal: undefined }, version).catch(() => undefined);
    throw error;
  }
  const root = { uid: 0, gid: 0 };
  await stopApp(rest, guest, progress);
  await writeFile(files, posix.join(home, "supervise"), { ...root, mode: 0o755, content: Buffer.from(supervisor) });
  await writeFile(files, posix.join(home, "start"), { ...root, mode: 0o644, content: Buffer.from(build.start) });
  const others = `cd ${home}/versions && for v in *; do [ "$v" = "${posix.basename(version)}" ] || rm -rf "$v"; done`;
  await shell(rest, guest, {
    script: `cd ${home} && ln -sfn versions/${posix.basename(version)} app.new && mv -T app.new app && ${others}`,
    what: "switch to the new version",
    progress,
  });
  await startApp(rest, guest, progress);
}

/** Starts the application of a running container, unless it runs. */
export async function startApp(rest: Rest, guest: Guest, progress: Progress): Promise<void> {
  await shell(rest, guest, { script: startScript, what: "start the application", progress });
}

export async function stopApp(rest: Rest, guest: Guest, progress: Progress): Promise<void> {
  await shell(rest, guest, { script: stopScript, what: "stop the application", progress });
}

async function unpack(files: Files, from: { tar: string; version: string }, progress: Progress): Promise<void> {
  await removeTree(files, from.version);
  await makeParents(files, from.version);
  await makeDirectory(files, from.version, { uid: 0, gid: 0, mode: 0o755 });
  for await (const entry of readTar(createReadStream(from.tar))) {
    progress.signal.throwIfAborted();
    await unpackEntry(files, entry, { below: from.version, progress });
    entry.resume();
  }
}

async function runCommand(rest: Rest, guest: Guest, job: { build: Build; version: string; progress: Progress }): Promise<void> {
  if (job.build.command === undefined) return;
  const result = await execute(rest, {
    guest: guest.name,
    command: ["sh", "-c", job.build.command],
    cwd: job.version,
    timeoutMillis: deadlines.build,
    signal: job.progress.signal,
  });
  if (result.exitCode === 0) return;
  const output = `${result.stdout}${result.stderr}`.trim().split("\n").slice(-20).join("\n");
  throw new CloudletError("FAILED", `build.command of ${guest.spec.id} ended with exit code ${String(result.exitCode)}: ${output}`, {
    fix: "correct build.command or its context",
  });
}

async function shell(rest: Rest, guest: Guest, job: { script: string; what: string; progress: Progress }): Promise<void> {
  const result = await execute(rest, {
    guest: guest.name,
    command: ["sh", "-c", job.script],
    timeoutMillis: 60_000,
    signal: job.progress.signal,
  });
  if (result.exitCode === 0) return;
  throw new CloudletError("FAILED", `cannot ${job.what} in ${guest.name}: ${(result.stderr || result.stdout).trim()}`, {
    fix: "the base of a build needs a shell, setsid, tr, grep, ln and mv",
  });
}
