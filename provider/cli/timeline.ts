import type { Handoff, HandoffEvent } from "../agent/handoffProtocol.ts";
import { sizeText } from "../local/overlays/parts.ts";
import { duration, escape } from "./pageText.ts";

const [width, left, right] = [960, 92, 24];
/** A pause shorter than this part of the whole is shown a second time, enlarged. */
const tooShort = 0.15;

interface Span {
  start: number;
  end: number;
  label: string;
  /** Where the pointer rests. */
  detail: string;
  colour: string;
}

interface Mark {
  at: number;
  label: string;
}

interface Story {
  start: number;
  end: number;
  sent: Span[];
  application: Span[];
  marks: Mark[];
}

/** What was sent when, where the application ran, and the moments that decide: as pictures in SVG. */
export function timeline(handoff: Handoff): string {
  const story = storyOf(handoff);
  const away = story.application.find(({ colour }) => colour === "away");
  const pictures = [picture(story, `${handoff.from} to ${handoff.to}: the whole handoff`)];
  if (away !== undefined && away.end - away.start < tooShort * (story.end - story.start)) {
    const margin = (away.end - away.start) * 0.3;
    const close = { ...story, start: Math.max(story.start, away.start - margin), end: Math.min(story.end, away.end + margin) };
    pictures.push(picture(close, `${handoff.from} to ${handoff.to}: around the pause`));
  }
  return pictures.join("\n");
}

function storyOf({ from, to, beganAt, events, report }: Handoff): Story {
  const time = (type: HandoffEvent["type"]): number | undefined => events.find((event) => event.type === type)?.at;
  const last = events.at(-1);
  const end = Math.max(last?.at ?? beganAt, beganAt + 1);
  const [paused, sealed, ended] = [time("paused"), time("sealed"), time("ended") ?? time("failed")];
  const application: Span[] = [{ ...spanAt(beganAt, paused ?? end), label: `runs on ${from}`, detail: `runs on ${from}`, colour: "here" }];
  if (paused !== undefined) {
    const until = ended ?? end;
    application.push({ ...spanAt(paused, until), label: "away", detail: `away for ${duration(until - paused)}`, colour: "away" });
  }
  const rounds = events.filter((event) => event.type === "round");
  const sent = rounds.map(({ at, round }, index) => ({
    ...spanAt(at - round.millis, at),
    label: `${index + 1}`,
    detail: `round ${index + 1}: ${sizeText(round.bytes)} for ${sizeText(round.rawBytes)} in ${duration(round.millis)}, level ${round.level}`,
    colour: "sent",
  }));
  if (sent.length === 0 && paused !== undefined) {
    const before = (report?.bytesSupplied ?? 0) + (report?.bytesAhead ?? 0);
    if (before > 0) sent.push({ ...spanAt(beganAt, paused), ...copied(before), colour: "sent" });
    sent.push({ ...spanAt(paused, sealed ?? ended ?? end), ...copied(report && report.bytesSent - before), colour: "sent" });
  }
  const names = { paused: "paused", sealed: "all there", released: "let go", activated: "started", ended: `answers on ${to}` };
  const failed = last?.type === "failed" ? [{ at: last.at, label: last.resumed ? `goes on at ${from}` : "failed" }] : [];
  const marks = Object.entries(names).flatMap(([type, label]) =>
    events.filter((event) => event.type === type).map(({ at }) => ({ at, label })),
  );
  return { start: beganAt, end, sent, application, marks: [...marks, ...failed] };
}

function copied(bytes: number | undefined): Pick<Span, "label" | "detail"> {
  const text = bytes === undefined ? "copied" : `${sizeText(bytes)} copied`;
  return { label: text, detail: text };
}

const spanAt = (start: number, end: number): Pick<Span, "start" | "end"> => ({ start, end: Math.max(start, end) });

function picture({ start, end, sent, application, marks }: Story, title: string): string {
  const x = (at: number): number => left + ((Math.min(Math.max(at, start), end) - start) / (end - start)) * (width - left - right);
  const shown = marks.filter(({ at }) => at >= start && at <= end);
  const top = 14 * shown.length + 8;
  const lanes = [
    { name: "sent", y: top, spans: sent },
    { name: "application", y: top + 34, spans: application },
  ];
  const height = top + 100;
  return `<svg viewBox="0 0 ${width} ${height}" role="img" aria-label="${escape(title)}">
<title>${escape(title)}</title>
${shown.map((mark, row) => markAt(mark, { x: x(mark.at), y: 12 + 14 * row, bottom: top + 62 })).join("\n")}
${lanes.map(({ name, y, spans }) => `<text class="soft" x="0" y="${y + 17}">${name}</text>\n${spans.map((span) => bar(span, y, x)).join("\n")}`).join("\n")}
${axis(start, end, { x, y: top + 70 })}
</svg>`;
}

function bar({ start, end, label, detail, colour }: Span, y: number, x: (at: number) => number): string {
  const wide = x(end) - x(start);
  if (wide <= 0 && end > start) return "";
  const text =
    wide > 7 * label.length + 8 ? `<text x="${round(x(start) + wide / 2)}" y="${y + 17}" text-anchor="middle">${escape(label)}</text>` : "";
  const box = `<rect x="${round(x(start))}" y="${y}" width="${round(Math.max(wide, 1.5))}" height="26" rx="2" fill="var(--${colour})" fill-opacity=".75"/>`;
  return `<g><title>${escape(detail)}</title>${box}${text}</g>`;
}

/** Labels stand in rows of their own, so that moments that are close do not cover each other. */
function markAt({ label }: Mark, { x, y, bottom }: { x: number; y: number; bottom: number }): string {
  const atEnd = x > width / 2;
  const place = atEnd ? `x="${round(x - 4)}" text-anchor="end"` : `x="${round(x + 4)}"`;
  return `<line x1="${round(x)}" x2="${round(x)}" y1="${y - 9}" y2="${bottom}" stroke="var(--soft)" stroke-width="1"/><text ${place} y="${y}">${escape(label)}</text>`;
}

function axis(start: number, end: number, { x, y }: { x: (at: number) => number; y: number }): string {
  const step = stepOf(end - start);
  const ticks: string[] = [];
  // counted from the begin of the handoff or of what is enlarged
  for (let millis = 0; millis <= end - start; millis += step) {
    const place = round(x(start + millis));
    ticks.push(
      `<line x1="${place}" x2="${place}" y1="${y}" y2="${y + 5}" stroke="var(--soft)"/><text class="soft" x="${place}" y="${y + 19}" text-anchor="middle">${duration(millis)}</text>`,
    );
  }
  return `<line x1="${left}" x2="${width - right}" y1="${y}" y2="${y}" stroke="var(--line)"/>\n${ticks.join("\n")}`;
}

/** The shortest of 1, 2 or 5 times a power of ten that gives ten ticks at most. */
function stepOf(millis: number): number {
  for (let power = 1; ; power *= 10) for (const factor of [1, 2, 5]) if (millis <= 10 * factor * power) return factor * power;
}

const round = (value: number): number => Math.round(value * 10) / 10;
