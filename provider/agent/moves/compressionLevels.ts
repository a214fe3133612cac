/** What was measured of the way to the target. */
export interface Pace {
  linkBytesPerMillis: number;
  /** How compression did lately. */
  sample?: {
    level: number;
    /** Compressed by uncompressed. */
    sizeRatio: number;
    /** Uncompressed bytes for each millisecond of a whole processor; undefined = too little to measure. */
    bytesPerMillis: number | undefined;
  };
}

export interface Processor {
  /** Of one processor, for the compression. */
  share: number;
}

/** Levels of zstd that differ enough to choose among: speed and saving relative to level 1, of programs and libraries as memory holds them. */
const levels = [
  { level: 1, speed: 1, saving: 1 },
  { level: 3, speed: 0.6, saving: 1.05 },
  { level: 6, speed: 0.22, saving: 1.07 },
  { level: 9, speed: 0.12, saving: 1.08 },
  { level: 12, speed: 0.053, saving: 1.084 },
  { level: 19, speed: 0.0055, saving: 1.127 },
] as const;

/** Where nothing was measured: level 1 on a modest processor, and memory that halves. */
const assumed = { bytesPerMillis: 150_000, sizeRatio: 0.5 };
/** Even a node that has nothing to spare gives a process some of its time. */
const leastShare = 0.05;
/** No level leaves less than this of what another one leaves: savings of what shrinks to nearly nothing cannot be added up. */
const leastOfAnother = 0.8;
const slowest = 0.001;
/** The processor must be so much ahead of the link, since neither is steady. */
const lead = 1.3;
/** A higher level for less than this is work for nothing. */
const leastGain = 0.01;

/** The lowest level that keeps the compression ahead of the link and saves about what the best such level does. */
export function chooseLevel(pace: Pace, processor: Processor): number {
  const ahead = levels
    .map(({ level }) => ({ level, ...limitsOf(level, pace, processor) }))
    .filter(({ compression, link }) => compression >= lead * link);
  const best = Math.max(...ahead.map(({ link }) => link));
  return ahead.find(({ link }) => link >= best * (1 - leastGain))?.level ?? 1;
}

/** Uncompressed bytes that get away in a millisecond at a level. */
export function paceAt(level: number, pace: Pace, processor: Processor): number {
  const { compression, link } = limitsOf(level, pace, processor);
  return Math.max(slowest, Math.min(compression, link));
}

/** Uncompressed bytes in a millisecond, as far as compression and link each would allow. */
function limitsOf(level: number, { linkBytesPerMillis, sample }: Pace, { share }: Processor): { compression: number; link: number } {
  const [wanted, known] = [factorsOf(level), factorsOf(sample?.level ?? 1)];
  const ratio = sample?.sizeRatio ?? assumed.sizeRatio;
  const sizeRatio = Math.max(leastOfAnother * ratio, 1 - ((1 - ratio) * wanted.saving) / known.saving);
  const alone = sample?.bytesPerMillis ?? assumed.bytesPerMillis * known.speed;
  return {
    compression: ((alone * wanted.speed) / known.speed) * Math.max(leastShare, share),
    link: linkBytesPerMillis / sizeRatio,
  };
}

function factorsOf(level: number): { speed: number; saving: number } {
  return levels.findLast((it) => it.level <= level) ?? levels[0];
}
