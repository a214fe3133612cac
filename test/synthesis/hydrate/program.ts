import { runHydrator } from "../../../provider/synthesis/hydrate/hydrator.ts";

// the agent's subcommand by itself, which starts much sooner from source than the whole agent
await runHydrator(process.argv[3] ?? "");
process.exit();
