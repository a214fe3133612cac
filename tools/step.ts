import { styleText } from "node:util";
import type { Outcome } from "../test/engine.ts";

/** Does a part of a demonstration, and shows what it was and how long it took. */
export async function step<T>(title: string, work: () => Promise<T>): Promise<T> {
  const began = performance.now();
  process.stdout.write(`${styleText("bold", "▶")} ${title} … `);
  const result = await work();
  console.log(styleText("green", `${((performance.now() - began) / 1000).toFixed(1)} s`));
  return result;
}

export async function expectOk(running: Promise<Outcome>): Promise<Outcome> {
  const outcome = await running;
  if (!outcome.ok) throw new Error(`pulumi failed:\n${outcome.text}`);
  return outcome;
}

/** What the preview says of a move. */
export function shownMove({ diagnostics }: Outcome): string {
  return styleText("cyan", `    ${/cloudlet ".*moves in place.*/.exec(diagnostics)?.[0] ?? ""}`);
}
