import { mkdir, readFile, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { format, resolveConfig } from "prettier";
import { errorsPage, resourcePage, schemaJson } from "../provider/core/schema.ts";
import { functions, resources } from "../provider/index.ts";
import { settingsSchema } from "../provider/settings.ts";
import { describeFunction, describeProvider, describeResource, nameOf, typeNamesOf } from "./describe.ts";
import { argsFile, inputsFile, propertiesFile, resultsFile, typesText } from "./generateTypes.ts";

const root = join(import.meta.dirname, "..");

/** Every generated file with its text; `--check` compares instead of writing. */
async function generated(): Promise<Map<string, string>> {
  const described = resources.map(describeResource);
  const { version, description, keywords, license, author } = JSON.parse(await readFile(join(root, "package.json"), "utf8")) as Record<
    "version" | "description" | "license" | "author",
    string
  > & { keywords: string[] };
  const about = { version, description, keywords, license, publisher: author };
  const provider = describeProvider(settingsSchema);
  const asked = functions.map(describeFunction);
  const names = typeNamesOf([...described, provider, ...asked]);
  const files = new Map([
    [
      "schema.json",
      `${JSON.stringify(schemaJson({ ...about, resources: described, functions: asked, settings: provider.inputs }, names), null, 2)}\n`,
    ],
    ["sdk/types.ts", typesText(described, names)],
    ["sdk/args.ts", argsFile([...described, provider], names)],
    ["sdk/inputs.ts", inputsFile([...described, provider], names)],
    ["sdk/properties.ts", propertiesFile(described, names)],
    ["sdk/results.ts", resultsFile(asked, described, names)],
    ["docs/errors.md", errorsPage()],
  ]);
  for (const resource of described) {
    const name = nameOf(resource.definition);
    files.set(`docs/resources/${name.charAt(0).toLowerCase()}${name.slice(1)}.md`, resourcePage(name, resource));
  }
  return files;
}

const check = process.argv.includes("--check");
for (const [path, unformatted] of await generated()) {
  const file = join(root, path);
  const text = await format(unformatted, { ...(await resolveConfig(file)), filepath: file });
  const before = await readFile(file, "utf8").catch(() => "");
  if (before === text) continue;
  if (check) {
    console.error(`${path} is not what the schemas say; run \`npm run generate\` and commit it`);
    process.exitCode = 1;
    continue;
  }
  await mkdir(dirname(file), { recursive: true });
  await writeFile(file, text);
  console.log(`wrote ${path}`);
}
