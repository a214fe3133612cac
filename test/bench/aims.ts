/** What was measured of an aim, in the aim's unit. */
export interface Measured {
  of: string;
  value: number;
}

/** A row for an aim: what missed it, or the worst of what kept it. */
export function aim(text: string, most: number, measured: readonly Measured[]): string {
  const falling = measured.toSorted((one, other) => other.value - one.value);
  const missed = falling.filter(({ value }) => value > most);
  const told = (missed.length > 0 ? missed : falling.slice(0, 1)).map(({ of, value }) => `${of} ${value.toFixed(3)}`);
  const verdict = missed.length === 0 ? "yes" : `${falling.length - missed.length} of ${falling.length}`;
  return `| ${text} | ${told.join(", ") || "not measured"} | ${falling.length === 0 ? "–" : verdict} |`;
}
