/** Flattens a layer in a process that has loaded what the operator's has; prints the most memory that it and its child took, in MiB. */
import { createRequire } from "node:module";
import { flatten } from "../../provider/local/flatten.ts";
import { isOurs, watchPeaks } from "../lab/peak.ts";

const [path = "", target = ""] = process.argv.slice(2);
const require = createRequire(import.meta.url);
require("@pulumi/pulumi");
require("../../dist/hooks.js");

const peaks = watchPeaks(({ pid }) => (pid === process.pid ? "provider" : isOurs(pid) ? "child" : undefined));
await flatten({ layers: [{ name: path, path }], target }, AbortSignal.timeout(300_000));
const most = peaks.stop();
console.log(JSON.stringify(Object.fromEntries(most)));
