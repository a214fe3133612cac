import { Operations } from "../../provider/doors/plugin/operations.ts";
import { runPlugin } from "../../provider/doors/plugin/process.ts";
import { digests } from "../../provider/local/files.ts";
import { toy, toyContext } from "./toy.ts";

// the plugin's door with the toy behind it, as the built package has it with the real resources
runPlugin({
  version: "0.0.1",
  schema: () => Promise.resolve(JSON.stringify({ name: "cloudlet", resources: { [toy.token]: {} } })),
  operations: (report) =>
    Promise.resolve(
      new Operations({
        definitions: [toy],
        functions: [],
        digests,
        report,
        secretSettings: [],
        checkSettings: () => [],
        world: () => () => Promise.resolve({ openContext: toyContext, inTurn: (_signal, work) => work() }),
      }),
    ),
});
