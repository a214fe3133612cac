import type { Handoff, HandoffEvent, Round } from "../agent/handoffProtocol.ts";
import { sizeText } from "../local/overlays/parts.ts";
import { duration, escape } from "./pageText.ts";
import { timeline } from "./timeline.ts";

/** A page of its own, with nothing to load: every handoff as a picture over time, its rounds and what was decided. */
export function handoffPage(id: string, handoffs: readonly Handoff[]): string {
  const none = handoffs.length === 0 ? "<p>No handoff is known.</p>" : "";
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Handoffs of ${escape(id)}</title>
<style>${style}</style>
</head>
<body>
<h1>Handoffs of ${escape(id)}</h1>
${none}${handoffs.map(section).join("\n")}
</body>
</html>
`;
}

const style = `
:root { color-scheme: light dark; --ink: light-dark(#1b1f24, #e6e8eb); --soft: light-dark(#667079, #9aa4ad); --line: light-dark(#d5dae0, #3a424a);
  --here: light-dark(#2b8a57, #4fb07c); --there: light-dark(#2a6fb0, #5b9fdc); --away: light-dark(#c63d3d, #e8706b); --sent: light-dark(#d99a2b, #d9a648); }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: light-dark(#fff, #15181c); max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin: 2.5rem 0 .2rem; font-size: 1.15rem; } p { margin: .2rem 0 .8rem; }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; } svg text { fill: var(--ink); } svg .soft { fill: var(--soft); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .4rem 0 1rem; }
th, td { text-align: right; padding: .15rem .8rem .15rem 0; white-space: nowrap; vertical-align: top; } th { color: var(--soft); font-weight: 500; } .text { text-align: left; white-space: normal; }
.away { color: var(--away); }`;

function section(handoff: Handoff): string {
  const { from, to, mode, beganAt } = handoff;
  const rounds = handoff.events.filter((event) => event.type === "round").map(({ round }) => round);
  return `<section>
<h2>${escape(from)} → ${escape(to)}, ${mode}</h2>
<p>${escape(new Date(beganAt).toISOString())}. ${summary(handoff)}</p>
${timeline(handoff)}
${rounds.length > 0 ? roundsTable(rounds) : ""}${decisionsTable(handoff)}
</section>`;
}

function summary({ outcome, report, message, events }: Handoff): string {
  if (outcome === "failed") {
    const last = events.at(-1);
    const then = last?.type === "failed" && last.resumed ? " The application goes on where it was." : "";
    return `<span class="away">Failed: ${escape(message ?? "it was cut off")}.</span>${then}`;
  }
  if (report === undefined) return "Under way.";
  const { totalMillis, downtimeMillis, bytesSent, bytesSupplied = 0, bytesAhead, bytesAvoided, predicted, route } = report;
  const expected = predicted ? ` (${duration(predicted.downtimeMillis)} were expected)` : "";
  const way = route === "operator" ? ", through the operator's machine" : "";
  const images = bytesSupplied === 0 ? "" : `, of which ${sizeText(bytesSupplied)} a preseeded node would have had`;
  const ahead = bytesAhead === undefined ? "" : `, ${sizeText(bytesAhead)} while it still ran`;
  return `${duration(totalMillis)} in all, the application was away for ${duration(downtimeMillis)}${expected}; ${sizeText(bytesSent)} sent${way}${images}${ahead}, ${sizeText(bytesAvoided)} were there already.`;
}

function roundsTable(rounds: readonly Round[]): string {
  const rows = rounds.map(
    ({ pages, blocks, rawBytes, bytes, millis, level, throttlePercent }, index) =>
      `<tr>${[index + 1, pages, blocks, sizeText(rawBytes), sizeText(bytes), duration(millis), level, `${throttlePercent} %`].map((it) => `<td>${it}</td>`).join("")}</tr>`,
  );
  const heads = ["round", "pages", "blocks", "changed", "sent", "took", "level", "slowed down"];
  return `<table><tr>${heads.map((it) => `<th>${it}</th>`).join("")}</tr>${rows.join("")}</table>`;
}

function decisionsTable({ beganAt, events }: Handoff): string {
  const decided = events.filter((event): event is HandoffEvent & { type: "decided" } => event.type === "decided");
  if (decided.length === 0) return "";
  const expected = (millis: number | undefined): string => (millis === undefined ? "" : duration(millis));
  const rows = decided.map(({ at, decision: { action, reason, predictedTotalMillis, predictedDowntimeMillis } }) => {
    const numbers = [duration(at - beganAt), expected(predictedTotalMillis), expected(predictedDowntimeMillis)];
    return `<tr>${numbers.map((it) => `<td>${it}</td>`).join("")}<td class="text">${action}</td><td class="text">${escape(reason)}</td></tr>`;
  });
  const heads = `<th>after</th><th>in all</th><th>pause</th><th class="text">then</th><th class="text">because</th>`;
  return `<table><tr>${heads}</tr>${rows.join("")}</table>`;
}
