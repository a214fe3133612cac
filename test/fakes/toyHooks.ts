import { Declarations } from "../../provider/core/declarations.ts";
import { reportToEngine } from "../../provider/doors/dynamic/report.ts";
import { dynamicHooks } from "../../provider/doors/dynamic/translate.ts";
import { digests } from "../../provider/local/files.ts";
import { toy, toyContext } from "./toy.ts";

/** The dynamic door with the toy behind it, as the built package has it with the real resources. */
export const hooksOf = dynamicHooks({
  note: () => undefined,
  definitions: [toy],
  declarations: new Declarations(),
  digests,
  open: (subject) => toyContext(reportToEngine(subject)),
});
