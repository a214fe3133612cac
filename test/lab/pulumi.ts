import { dirname, join } from "node:path";
import { LocalWorkspace, PulumiCommand, type PulumiFn, type Stack } from "@pulumi/pulumi/automation/index.js";
import { CloudletError } from "../../provider/core/errors.ts";
import { engineEnvironment, pulumiPath } from "../engine.ts";

const project = "lab";

/** What `pulumi COMMAND` does in this folder, with the real engine and without the language host that `pulumi` brings for TypeScript. */
export async function pulumi(directory: string, command: string): Promise<void> {
  const stack = await openStack(directory);
  const shown = { onOutput: (text: string) => void process.stdout.write(text), color: process.stdout.isTTY ? "always" : "never" } as const;
  if (command === "preview") await stack.preview({ ...shown, diff: true });
  else if (command === "up") await stack.up(shown);
  else if (command === "refresh") await stack.refresh(shown);
  else if (command === "destroy") await stack.destroy(shown);
  else throw new CloudletError("INVALID", `"pulumi ${command}" is not known here`, { fix: "use preview, up, refresh or destroy" });
}

async function openStack(directory: string): Promise<Stack> {
  const engine = pulumiPath();
  const program: PulumiFn = async () => {
    const exported = (await import(join(directory, "index.ts"))) as Record<string, unknown>;
    return { ...exported };
  };
  return LocalWorkspace.createOrSelectStack(
    { projectName: project, stackName: "dev", program },
    {
      envVars: engineEnvironment(directory, engine),
      pulumiCommand: await PulumiCommand.get({ root: dirname(dirname(engine)) }),
      projectSettings: { name: project, runtime: "nodejs", main: directory, backend: { url: `file://${join(directory, "backend")}` } },
      secretsProvider: "passphrase",
      workDir: directory,
    },
  );
}
