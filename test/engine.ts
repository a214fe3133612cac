import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readFile, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { type Deployment, type EngineEvent, LocalWorkspace, PulumiCommand, type PulumiFn } from "@pulumi/pulumi/automation/index.js";
import { keyService, keyServiceEnvironment } from "./fakes/keyService.ts";

const repository = resolve(import.meta.dirname, "..");

/** One step as the engine planned or did it. `__provider` is left out of `changed`. */
export interface Step {
  op: string;
  type: string;
  name: string;
  changed: string[];
  replacedFor: string[];
}

export interface Outcome {
  ok: boolean;
  /** Steps on the project's own resources; the stack itself and default providers are left out. */
  steps: Step[];
  /** The engine's counts, such as `{ same: 3 }`. */
  counts: Record<string, number>;
  /** Everything that the engine printed under Diagnostics, status lines excluded. */
  diagnostics: string;
  /** Status lines. */
  status: string[];
  /** What `pulumi` printed. */
  text: string;
  /** What the program returned; of a secret only that it is one. */
  outputs: Record<string, unknown>;
}

export interface TestStack {
  /** Folder of the program, with `node_modules/pulumi-cloudlet` and `node_modules/@pulumi/pulumi` in it. */
  directory: string;
  preview(program?: PulumiFn): Promise<Outcome>;
  /** `interrupt` does what Ctrl-C does. */
  up(program?: PulumiFn, interrupt?: AbortSignal): Promise<Outcome>;
  refresh(): Promise<Outcome>;
  /** What `pulumi import TYPE NAME ID` does, for each of these. */
  import(resources: { type: string; name: string; id: string }[]): Promise<Outcome>;
  destroy(): Promise<Outcome>;
  /** The stack's resources as stored, secrets encrypted. */
  state(): Promise<StoredResource[]>;
  /** The stored state as text, as it lies on the disk. */
  stateText(): Promise<string>;
  setConfig(key: string, value: string, secret?: boolean): Promise<void>;
  /** What `pulumi stack export` writes. */
  exportState(): Promise<Deployment>;
  /** Takes the place of what is stored, as by `pulumi stack import`. */
  importState(deployment: Deployment): Promise<void>;
  /** Removes the folder with the backend; resources must be destroyed before. */
  close(): Promise<void>;
}

export interface StoredResource {
  urn: string;
  type: string;
  id?: string;
  inputs?: Record<string, unknown>;
  outputs?: Record<string, unknown>;
  initErrors?: string[];
}

export interface StackSettings {
  project?: string;
  stack?: string;
  program: PulumiFn;
  env?: Record<string, string>;
  /** Folder of the plugin that serves `cloudlet`; without one it is the repository, where the plugin is built. */
  plugin?: string;
  /**
   * With all that the Automation API does after an operation, and with a passphrase, as most users have it. Both together take more than
   * most operations of a test: four more runs of the engine, which derive a key from the passphrase each time.
   */
  asUsers?: boolean;
}

/** A stack of its own in a folder of its own, run by the real engine. */
export async function openStack({
  project = "test",
  stack = "dev",
  program,
  env = {},
  plugin = repository,
  asUsers = false,
}: StackSettings): Promise<TestStack> {
  const directory = await programFolder();
  const engine = pulumiPath();
  let current = program;
  const envVars = { ...engineEnvironment(directory, engine), ...(await keyServiceEnvironment()), ...env };
  const made = await LocalWorkspace.createOrSelectStack(
    { projectName: project, stackName: stack, program: () => current() },
    {
      envVars,
      pulumiCommand: await PulumiCommand.get({ root: dirname(dirname(engine)) }),
      projectSettings: Object.assign(
        { name: project, runtime: "nodejs", main: directory, backend: { url: `file://${join(directory, "backend")}` } },
        // the SDK's type does not know it
        { plugins: { providers: [{ name: "cloudlet", path: plugin }] } },
      ),
      secretsProvider: asUsers ? "passphrase" : keyService,
      workDir: directory,
    },
  );
  if (!asUsers) Object.assign(made, { outputs: () => Promise.resolve({}), info: () => Promise.resolve(undefined) });
  // exportStack decrypts; what lies on the disk is what counts
  const stored = (): Promise<string> => readFile(join(directory, "backend", ".pulumi", "stacks", project, `${stack}.json`), "utf8");
  return {
    directory,
    preview: (next = current) => ((current = next), outcome((recorder) => made.preview({ ...recorder, diff: true }))),
    up: (next = current, interrupt) => (
      (current = next),
      outcome((recorder) => made.up({ ...recorder, ...(interrupt && { signal: interrupt }) }))
    ),
    refresh: () => outcome((recorder) => made.refresh(recorder)),
    // code would need a language's own program; nothing that is protected could be destroyed
    import: (resources) => outcome(({ onOutput }) => made.import({ resources, onOutput, protect: false, generateCode: false })),
    destroy: () => outcome((recorder) => made.destroy(recorder)),
    stateText: stored,
    async state() {
      const { checkpoint } = JSON.parse(await stored()) as { checkpoint: { latest?: { resources?: StoredResource[] } } };
      return (checkpoint.latest?.resources ?? []).filter(({ type }) => !type.startsWith("pulumi:"));
    },
    setConfig: (key, value, secret = false) => made.setConfig(key, { value, secret }),
    exportState: () => made.exportStack(),
    importState: (deployment) => made.importStack(deployment),
    close: () => rm(directory, { recursive: true, force: true }),
  };
}

/** A program as it is shown, run anew each time as `pulumi` does; what it exports are the outputs. */
export function exampleProgram(path: string): PulumiFn {
  let runs = 0;
  return async () => {
    const module = (await import(`${path}?run=${runs++}`)) as Record<string, unknown>;
    return Object.fromEntries(Object.entries(module).filter(([name]) => name !== "default" && name !== "module.exports"));
  };
}

/** A folder in which the built package and the SDK resolve, as in a project that installed them. */
export async function programFolder(): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "cloudlet-stack-"));
  await fillProgramFolder(directory);
  return directory;
}

export async function fillProgramFolder(directory: string): Promise<void> {
  await mkdir(join(directory, "backend"));
  await mkdir(join(directory, "node_modules", "@pulumi"), { recursive: true });
  await symlink(repository, join(directory, "node_modules", "pulumi-cloudlet"));
  await symlink(join(repository, "node_modules", "@pulumi", "pulumi"), join(directory, "node_modules", "@pulumi", "pulumi"));
  await writeFile(join(directory, "package.json"), JSON.stringify({ name: "program", private: true, type: "module" }));
}

/** Offline, with a home and a backend of its own. */
export function engineEnvironment(directory: string, engine = pulumiPath()): Record<string, string> {
  const bin = [
    dirname(engine),
    join(repository, "node_modules", "@pulumi", "pulumi"),
    join(repository, "node_modules", ".bin"),
    join(repository, "test", "languageHost"),
  ];
  return {
    PATH: [...bin, process.env["PATH"] ?? ""].join(":"),
    PULUMI_HOME: join(directory, "home"),
    PULUMI_BACKEND_URL: `file://${join(directory, "backend")}`,
    PULUMI_CONFIG_PASSPHRASE: "test",
    PULUMI_SKIP_UPDATE_CHECK: "true",
    PULUMI_DISABLE_AUTOMATIC_PLUGIN_ACQUISITION: "true",
  };
}

/** The engine that the Makefile found, else what the project's own script finds or builds. */
export function pulumiPath(): string {
  const given = process.env["PULUMI_ENGINE"];
  if (given !== undefined && given !== "") return given;
  return execFileSync(join(repository, "tools", "engine", "build"), { encoding: "utf8", timeout: 15 * 60_000 }).trim();
}

interface Recorder {
  onEvent(event: EngineEvent): void;
  onOutput(text: string): void;
}

async function outcome(operation: (recorder: Recorder) => Promise<unknown>): Promise<Outcome> {
  const events: EngineEvent[] = [];
  let text = "";
  const record = { onEvent: (event: EngineEvent) => void events.push(event), onOutput: (chunk: string) => void (text += chunk) };
  let ok = true;
  try {
    await operation(record);
  } catch (error) {
    ok = false;
    text += error instanceof Error ? error.message : String(error);
  }
  return { ok, text, ...summary(events), outputs: outputs(events) };
}

/** What the program has returned, as the engine tells it at the end. */
function outputs(events: EngineEvent[]): Record<string, unknown> {
  const ended = events.findLast(({ resOutputsEvent }) => resOutputsEvent?.metadata.type === "pulumi:pulumi:Stack");
  return ended?.resOutputsEvent?.metadata.new?.outputs ?? {};
}

function summary(events: EngineEvent[]): Pick<Outcome, "steps" | "counts" | "diagnostics" | "status"> {
  const diagnostics = events.flatMap(({ diagnosticEvent }) => (diagnosticEvent ? [diagnosticEvent] : []));
  return {
    steps: events.flatMap(stepOf),
    counts: Object.assign({}, ...events.map(({ summaryEvent }) => summaryEvent?.resourceChanges ?? {})) as Record<string, number>,
    diagnostics: diagnostics
      .filter(({ ephemeral }) => !ephemeral)
      .map(({ message }) => message.replace(/<\{%[^%]*%\}>/g, ""))
      .join(""),
    status: diagnostics.filter(({ ephemeral }) => ephemeral === true).map(({ message }) => message.replace(/<\{%[^%]*%\}>/g, "").trim()),
  };
}

/** The dynamic door names no properties, so they are found as the engine finds them: what was there against what is declared. */
function differing(before: { inputs?: object; outputs?: object } | undefined, after: { inputs?: object } | undefined): string[] {
  if (!before || !after) return [];
  const [old, now]: Record<string, unknown>[] = [{ ...before.inputs, ...before.outputs }, { ...after.inputs }];
  const keys = new Set([...Object.keys(before.inputs ?? {}), ...Object.keys(after.inputs ?? {})]);
  return [...keys].filter((key) => JSON.stringify(old?.[key]) !== JSON.stringify(now?.[key])).sort();
}

function stepOf({ resourcePreEvent, resOutputsEvent }: EngineEvent): Step[] {
  // a refresh says what it found only after the fact
  const metadata = resourcePreEvent?.metadata ?? (resOutputsEvent?.metadata.op === "refresh" ? resOutputsEvent.metadata : undefined);
  if (!metadata || metadata.type.startsWith("pulumi:")) return [];
  if (resourcePreEvent && metadata.op === "refresh") return [];
  const changed = metadata.detailedDiff
    ? Object.keys(metadata.detailedDiff)
    : metadata.diffs?.length
      ? metadata.diffs
      : differing(metadata.old, metadata.new);
  return [
    {
      op: metadata.op,
      type: metadata.type,
      name: metadata.urn.split("::").at(-1) ?? "",
      changed: changed.filter((key) => key !== "__provider"),
      replacedFor: metadata.keys ?? [],
    },
  ];
}
