import { isBuiltin } from "node:module";
import { describe, expect, it } from "vitest";
import { type Import, imports, paths, reachedFrom, read } from "./sources.ts";

interface Rule {
  /** The first rule whose pattern fits a file is the one for it. */
  files: RegExp;
  /** Paths, packages and built-in modules that may be imported. */
  may: RegExp[];
  /** More that may be imported as types. */
  types?: RegExp[];
}

const builtins = /^node:/;
const core = /^provider\/core\//;
const protocol = /^provider\/agent\/(protocol|factsProtocol|handoffProtocol|jobProtocol)\.ts$/;
const driverContract = /^provider\/hypervisors\/types\.ts$/;
// what reads an overlay's manifest and index, on a node or not
const overlayFormat = /^provider\/synthesis\/(manifest|manifestCheck|overlay)\.ts$/;
const clientContract = /^provider\/agent\/clientTypes\.ts$/;
const planner = /^provider\/synthesis\/plan\.ts$/;
const transportContract = /^provider\/transport\/types\.ts$/;
/** What several resources have in common. */
const resourceParts = /^provider\/resources\/(shared|guest|images|building|supply|relay)\.ts$/;
// these files of the agent's folder run at the operator's end
const operatorsEnd = /^provider\/agent\/(client|clientTypes|connect|install|installText|agentService)\.ts$/;

const rules: Rule[] = [
  { files: core, may: [core, /^zod$/, /^node:util$/], types: [clientContract, transportContract, /^node:stream$/] },
  { files: /^provider\/transport\/ssh\.ts$/, may: [/^provider\/transport\//, core, /^ssh2$/], types: [builtins] },
  { files: /^provider\/transport\/rest\.ts$/, may: [/^provider\/transport\//, core, /^undici$/, builtins] },
  { files: /^provider\/transport\//, may: [/^provider\/transport\//, core, protocol, builtins], types: [/^zod$/] },
  { files: operatorsEnd, may: [operatorsEnd, protocol, core, /^zod$/, builtins], types: [transportContract] },
  { files: /^provider\/agent\/drivers\.ts$/, may: [/^provider\/(agent|hypervisors)\//, core] },
  {
    files: /^provider\/agent\//,
    may: [
      /^provider\/agent\/(?!client|connect|install|agentService)/,
      /^provider\/synthesis\//,
      /^provider\/core\/errors\.ts$/,
      driverContract,
      /^provider\/hypervisors\/qemu\/rawView\.ts$/,
      /^zod$/,
      builtins,
    ],
  },
  { files: driverContract, may: [protocol, builtins] },
  {
    files: /^provider\/synthesis\//,
    may: [
      /^provider\/synthesis\//,
      /^provider\/agent\/(byteReader|ranges|protocol|durable|process|detached|pinnedTls)\.ts$/,
      /^provider\/core\/errors\.ts$/,
      /^zod$/,
      builtins,
    ],
  },
  ...["lxd", "qemu"].map((kind) => ({
    files: new RegExp(`^provider/hypervisors/${kind}/`),
    may: [
      new RegExp(`^provider/hypervisors/${kind}/`),
      driverContract,
      /^provider\/archive\//,
      /^provider\/agent\/(byteReader|protocol|durable|process|detached|guestScript)\.ts$/,
      core,
      /^(zod|tar-stream)$/,
      builtins,
    ],
    types: [transportContract],
  })),
  { files: /^provider\/archive\//, may: [/^provider\/archive\//, /^provider\/core\/errors\.ts$/, builtins] },
  {
    files: /^provider\/local\//,
    may: [/^provider\/(local|archive)\//, overlayFormat, protocol, core, /^(tar-stream|zod)$/, builtins],
  },
  {
    files: /^provider\/cli\//,
    may: [/^provider\/(cli|local)\//, /^provider\/runtime\.ts$/, overlayFormat, protocol, core, /^(commander|zod)$/, builtins],
    types: [clientContract, transportContract],
  },
  {
    files: /^provider\/resources\/cloudlet\//,
    may: [/^provider\/resources\/cloudlet\//, resourceParts, core, protocol, driverContract, planner, /^zod$/],
    types: [clientContract, transportContract],
  },
  {
    files: /^provider\/resources\//,
    may: [resourceParts, core, protocol, driverContract, /^zod$/],
    types: [clientContract, transportContract],
  },
  {
    files: /^provider\/functions\//,
    may: [core, protocol, resourceParts, /^zod$/],
    types: [clientContract, transportContract],
  },
  { files: /^provider\/index\.ts$/, may: [/^provider\/(resources|functions)\//], types: [core] },
  { files: /^provider\/settings\.ts$/, may: [core, resourceParts, /^zod$/] },
  {
    files: /^provider\/runtime\.ts$/,
    may: [core, operatorsEnd, protocol, /^provider\/settings\.ts$/, /^provider\/(local|transport)\//],
  },
  // its process begins with this alone
  { files: /^provider\/doors\/plugin\/start\.ts$/, may: [builtins, /^provider\/local\/cacheFolder\.ts$/] },
  {
    files: /^provider\/doors\/plugin\//,
    may: [
      /^provider\/doors\/(plugin\/|engineLog\.ts$)/,
      core,
      /^provider\/(index|runtime|settings)\.ts$/,
      // a check reads files; the rest of the world is opened later
      /^provider\/local\/files\.ts$/,
      /^provider\/functions\//,
      /^schema\.json$/,
      /^node:(util|fs)$/,
      // Pulumi's protocol, which the build puts into the plugin
      /^@pulumi\/pulumi\/proto\//,
      /^@grpc\/grpc-js$/,
      /^google-protobuf\//,
    ],
  },
  {
    files: /^provider\/doors\//,
    may: [/^provider\/doors\//, core, /^provider\/(index|runtime)\.ts$/, /^provider\/functions\//, builtins],
    types: [/^@pulumi\/pulumi/, /^@grpc\/grpc-js$/],
  },
  { files: /^sdk\//, may: [/^sdk\//, /^@pulumi\/pulumi$/], types: [/^provider\/doors\/dynamic\/hooks\.ts$/] },
  { files: /^examples\//, may: [/^pulumi-cloudlet(\/dynamic)?$/, /^@pulumi\/pulumi$/, builtins] },
];

const ruleOf = (path: string): Rule | undefined => rules.find(({ files }) => files.test(path));
const restricted = (path: string): boolean => /^(provider|sdk|examples)\/.*\.ts$/.test(path);

function isAllowed({ from, to, typeOnly }: Import): boolean {
  const rule = ruleOf(from);
  return rule !== undefined && [...rule.may, ...(typeOnly ? (rule.types ?? []) : [])].some((pattern) => pattern.test(to));
}

describe("who may import whom", () => {
  it("is said for every folder of provider, sdk and examples", () => {
    expect(paths.filter((path) => restricted(path) && ruleOf(path) === undefined)).toEqual([]);
  });

  it("is kept", () => {
    const wrong = imports.filter((edge) => restricted(edge.from) && !isAllowed(edge));
    expect(
      wrong.map(
        ({ from, to, typeOnly }) =>
          `${from} imports ${typeOnly ? "types of " : ""}${to}; the rule for ${String(ruleOf(from)?.files)} does not allow it`,
      ),
    ).toEqual([]);
  });

  it("would notice a wrong one", () => {
    expect(imports).toContainEqual({ from: "provider/agent/install.ts", to: "provider/agent/installText.ts", typeOnly: false });
    expect(imports).toContainEqual({ from: "provider/agent/drivers.ts", to: "provider/hypervisors/qemu/driver.ts", typeOnly: false });
    const wrong = ["ssh2", "node:fs", "@pulumi/pulumi", "provider/agent/store.ts", "provider/resources/node.ts"];
    for (const to of wrong) expect(isAllowed({ from: "provider/core/check.ts", to, typeOnly: false })).toBe(false);
  });

  it("leaves no circles", () => {
    const circular = paths.filter((path) => path.endsWith(".ts") && reachedFrom(path).has(path));
    expect(
      circular.map((path) => `${path} imports itself through ${[...reachedFrom(path)].filter((to) => circular.includes(to)).join(", ")}`),
    ).toEqual([]);
  });

  it("keeps the agent's program to what runs on any Node 18 without installing anything", () => {
    const reached = reachedFrom("provider/agent/main.ts", ({ typeOnly }) => !typeOnly);
    const packages = [...reached].filter((to) => !to.startsWith("provider/") && !isBuiltin(to));
    expect(packages.filter((name) => name !== "zod" && name !== "tar-stream").map((name) => `the agent's program imports ${name}`)).toEqual(
      [],
    );
  });
});

it("no file only passes on what others export, but the package's entries", () => {
  const sources = paths.filter((path) => path.endsWith(".ts") && !/^sdk\/\w+\/index\.ts$/.test(path));
  const statements = (path: string): string[] =>
    read(path)
      .split(/;\s*\n/)
      .filter((text) => text.trim() !== "");
  const barrels = sources.filter((path) => statements(path).every((text) => /^\s*export\s[^;]*\sfrom\s/.test(text)));
  expect(barrels.map((path) => `${path} only passes on exports`)).toEqual([]);
});

it("exports have names", () => {
  const files = paths.filter((path) => path.endsWith(".ts") && path !== "vitest.config.ts");
  expect(
    files.filter((path) => /^export (default\b|\{[^}]*\bas default\b)/m.test(read(path))).map((path) => `${path} has a default export`),
  ).toEqual([]);
});

/** Who may read the environment, and why. */
const environmentReaders: Record<string, string> = {
  "provider/agent/main.ts": "where a test puts the agent's data and socket",
  "provider/agent/process.ts": "children inherit it",
  "provider/hypervisors/qemu/program.ts": "where QEMU is, to notice an upgrade",
  "provider/hypervisors/qemu/seed.ts": "which of two programs is on the node",
  "provider/settings.ts": "settings of the provider that its configuration leaves out",
  "provider/local/cacheFolder.ts": "where the operator's cache is",
  "provider/local/registry/credentials.ts": "where docker keeps its settings",
  "provider/transport/operator.ts": "the operator's SSH agent and known hosts",
};

it("the environment is read in few places", () => {
  const readers = paths.filter((path) => /^(provider|sdk)\/.*\.ts$/.test(path) && /\bprocess\.env\b/.test(read(path)));
  expect(readers.filter((path) => !(path in environmentReaders)).map((path) => `${path} reads process.env`)).toEqual([]);
});
