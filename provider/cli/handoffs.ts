import { writeFile } from "node:fs/promises";
import { idSchema } from "../agent/protocol.ts";
import type { Handoff, MoveReport } from "../agent/handoffProtocol.ts";
import { CloudletError } from "../core/errors.ts";
import { sizeText } from "../local/overlays/parts.ts";
import type { Surroundings } from "./commands.ts";
import { handoffPage } from "./handoffPage.ts";
import { parseNode } from "./node.ts";
import { table } from "./table.ts";

export async function handoffs(
  id: string,
  { node, json, html }: { node: string; json: boolean; html?: string },
  around: Surroundings,
): Promise<void> {
  if (!idSchema.safeParse(id).success)
    throw new CloudletError("INVALID", `"${id}" names no cloudlet`, { fix: "write its cluster and its name, such as shop/counter" });
  const agent = await around.agent(parseNode(node));
  const found = await agent.handoffs(id, { signal: around.signal });
  if (html !== undefined) await writeFile(html, handoffPage(id, found));
  if (json) return around.print(JSON.stringify(found, null, 2));
  if (html !== undefined) return around.print(`${String(found.length)} handoffs of ${id} are in ${html}`);
  if (found.length === 0) return around.print(`${agent.label} knows of no handoff of ${id}`);
  for (const line of table([["BEGAN", "FROM", "TO", "MODE", "OUTCOME", "TOTAL", "AWAY", "SENT", "IMAGES", "ROUNDS"], ...found.map(row)]))
    around.print(line);
  for (const { beganAt, message } of found) if (message !== undefined) around.print(`${began(beganAt)} failed: ${message}`);
}

function row({ from, to, mode, outcome, beganAt, report }: Handoff): string[] {
  const known = report
    ? [
        seconds(report.totalMillis),
        seconds(report.downtimeMillis),
        sizeText(report.bytesSent),
        imagesOf(report),
        String(report.rounds?.length ?? ""),
      ]
    : [];
  return [began(beganAt), from, to, mode, outcome === "underWay" ? "under way" : outcome, ...known];
}

/** What a preseeded node would have had. */
const imagesOf = ({ bytesSupplied = 0 }: MoveReport): string => (bytesSupplied === 0 ? "" : sizeText(bytesSupplied));
const began = (at: number): string => new Date(at).toISOString().replace(/\.\d+Z$/, "Z");
const seconds = (millis: number): string => `${(millis / 1000).toFixed(millis < 10_000 ? 2 : 1)} s`;
