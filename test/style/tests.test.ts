import { expect, it } from "vitest";
import { imports, paths, reachedFrom } from "./sources.ts";

const isTest = (path: string): boolean => /^test\/.*\.test\.ts$/.test(path);

/** Which suite runs the files that no test imports by name, and that a test of their own would only repeat. */
const suites: { files: RegExp; suite: string }[] = [
  { files: /^provider\/archive\//, suite: "test/archive/archive.test.ts" },
  { files: /^provider\/core\//, suite: "test/resources/badInput.test.ts" },
  { files: /^provider\/local\/(registry\/|http\.ts)/, suite: "test/local/registry/registry.test.ts" },
  { files: /^provider\/local\/(files|directory)\.ts$/, suite: "test/core/localFiles.test.ts" },
  { files: /^provider\/local\//, suite: "test/local/images.lab.test.ts" },
  { files: /^provider\/cli\//, suite: "test/cli/overlay.test.ts" },
  { files: /^provider\/resources\//, suite: "test/resources/badInput.test.ts" },
  { files: /^provider\/transport\//, suite: "test/transport/pool.test.ts" },
  { files: /^provider\/agent\/(agentService|install)/, suite: "test/agent/commission.lab.test.ts" },
  { files: /^provider\/agent\/moves\//, suite: "test/agent/moves/crash.lab.test.ts" },
  { files: /^provider\/agent\//, suite: "test/agent/server.test.ts" },
  { files: /^provider\/synthesis\/[^/]+$/, suite: "test/synthesis/layer.test.ts" },
  { files: /^provider\/hypervisors\/lxd\//, suite: "test/hypervisors/lxd/driver.lab.test.ts" },
  { files: /^provider\/hypervisors\/qemu\//, suite: "test/hypervisors/qemu/driver.lab.test.ts" },
];

/** Run only in a process of its own, which a test cannot import; and who runs that. */
const built: { files: RegExp; by: string }[] = [
  {
    files: /^provider\/agent\/(main|serve|drivers|singleInstance|teardown|moves\/verbs|synthesis\/realWorks)\.ts$/,
    by: "test/agent/commission.lab.test.ts",
  },
  { files: /^provider\/(runtime|functions\/\w+)\.ts$/, by: "test/doors/dynamic/lifecycleKvm.lab.test.ts" },
  { files: /^provider\/local\/flattenProcess\.ts$/, by: "test/local/flatten.lab.test.ts" },
  { files: /^provider\/cli\/main\.ts$/, by: "test/cli/overlay.lab.test.ts" },
  { files: /^provider\/synthesis\/hydrate\//, by: "test/synthesis/hydrate/program.ts" },
  { files: /^provider\/doors\/(engineLog|plugin\/\w+)\.ts$/, by: "test/doors/plugin/protocol.lab.test.ts" },
  { files: /^provider\/core\/invoke\.ts$/, by: "test/doors/plugin/functions.lab.test.ts" },
  { files: /^provider\/core\/schema\.ts$/, by: "tools/generate.ts" },
];

it("every file of the provider is run by a test", () => {
  const direct = new Set(imports.filter(({ from }) => from.startsWith("test/")).map(({ to }) => to));
  const untested = paths
    .filter((path) => /^provider\/.*\.ts$/.test(path))
    .filter((path) => !direct.has(path) && !built.some(({ files }) => files.test(path)));
  const missing = untested.filter((path) => {
    const suite = suites.find(({ files }) => files.test(path))?.suite;
    return suite === undefined || !reachedFrom(suite).has(path);
  });
  expect(missing.map((path) => `${path} is run by no test; add one, or name the suite that runs it in this file`)).toEqual([]);
});

it("what is said to be run by a suite or a build is there", () => {
  const named = [...suites.map(({ suite }) => suite), ...built.map(({ by }) => by)];
  expect(named.filter((path) => !paths.includes(path)).map((path) => `${path} is named here and does not exist`)).toEqual([]);
});

it("tests lie where what they test lies", () => {
  const homeless = paths.filter(isTest).filter((path) => {
    const folder = path.split("/").slice(1, -1).join("/");
    const isOwn = ["", "style", "lab", "faults", "bench"].includes(folder);
    return !isOwn && !paths.some((other) => other.startsWith(`provider/${folder}/`));
  });
  expect(homeless.map((path) => `${path} mirrors no folder of the provider`)).toEqual([]);
});
