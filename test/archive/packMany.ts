/** Packs a tar, and prints the most memory that it took, in MiB. */
import { createReadStream, createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { packTree } from "../../provider/archive/pack.ts";
import { readTree, type Source } from "../../provider/archive/tree.ts";
import { peakMib } from "../lab/peak.ts";

const [tar = "", packed = ""] = process.argv.slice(2);
const source: Source = { name: tar, open: () => createReadStream(tar) as AsyncIterable<Buffer> };
await pipeline(packTree(await readTree([source]), [source]), createWriteStream(packed));
console.log(peakMib(process.pid));
