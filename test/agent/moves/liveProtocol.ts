import type { Step } from "./explore.ts";

/**
 * The ownership protocol of a live move as a pure model. Beyond protocol.ts: the guest runs while it is copied; its memory is
 * in processes on both sides, which can die alone; a target that has lost its copy before it owned it gives its epoch
 * up for good, and the source takes the application back with the next one; and a second target may be asked for meanwhile.
 */
export interface Live {
  source: Source;
  targets: Target[];
  /** Requests and answers on their way; one that is delivered stays, as it may come again. */
  wire: string[];
  /** Writes that a client of the application has seen acknowledged. */
  acknowledged: number;
  faults: number;
  deleted: boolean;
}

interface Source {
  up: boolean;
  /** The two records that decide are on disk: these three. */
  role: "owner" | "released" | "none";
  epoch: number;
  peer: number;
  /** It keeps its copy until the other node has answered. */
  leaving: boolean;
  qemu: Qemu;
  /** The last write that memory or disk have; what is acknowledged is on the disk, so a dead process loses none of it. */
  data: number;
  job: "none" | "copying" | "sealing" | "releasing" | "activating" | "watching" | "discarding";
  /** Names the stream of one attempt; no two attempts have the same. */
  attempt: number;
  seal: number;
}

interface Target {
  up: boolean;
  role: "none" | "incoming" | "owner" | "released";
  epoch: number;
  phase: "none" | "prepared" | "sealed" | "starting" | "ready";
  qemu: Qemu;
  attempt: number;
  data: number;
  seal: number;
}

/** `off`: its process is dead, and the disk is as it left it. */
type Qemu = "running" | "paused" | "off" | "none";

/** What the protocol relies on. Leaving one of them out must be noticed. */
export interface Rules {
  /** A source that has let go for one target is not led to another one. */
  onePeer: boolean;
  /** A target owns the epoch, durably, before the guest runs. */
  ownsBeforeRunning: boolean;
  /** What a target gives up it never takes in again. */
  givesUpForGood: boolean;
  /** A target says so only when its copy can never be started. */
  givesUpUnstarted: boolean;
  /** What arrives late of an earlier attempt is not mixed into a later one. */
  oneStream: boolean;
  /** The source lets go, durably, before the target is told. */
  releasesFirst: boolean;
}
export const allRules: Rules = {
  ...{ onePeer: true, ownsBeforeRunning: true, givesUpForGood: true },
  ...{ givesUpUnstarted: true, oneStream: true, releasesFirst: true },
};

export interface Bounds {
  writes: number;
  faults: number;
  /** So many messages are on their way at once. */
  underWay: number;
  /** Whether what is copied while the guest runs is told apart from the rest of it. */
  rounds: boolean;
  rules: Rules;
}

export function startWith(targets: number): Live {
  const target: Target = { up: true, role: "none", epoch: 0, phase: "none", qemu: "none", attempt: -1, data: -1, seal: -1 };
  return {
    source: {
      ...{ up: true, role: "owner", epoch: present, peer: -1, leaving: false, qemu: "running", data: 0 },
      ...{ job: "none", attempt: -1, seal: -1 },
    },
    targets: Array.from({ length: targets }, () => ({ ...target })),
    wire: [],
    acknowledged: 0,
    faults: 0,
    deleted: false,
  };
}

export const isFault = (step: string): boolean => /^(kill|pull)/.test(step);
/** What happens only because somebody asks for it. */
export const isAsked = (step: string): boolean => /^(prepare|run|cancel|delete)/.test(step);

/** Everything that may happen next. */
export function next(state: Live, bounds: Bounds): Step<Live>[] {
  const found: Step<Live>[] = [];
  const mayAfter =
    (message?: string): May =>
    (name, condition, change) => {
      if (!condition) return;
      const copy: Live = { ...state, source: { ...state.source }, targets: state.targets.map((it) => ({ ...it })), wire: [...state.wire] };
      change(copy);
      copy.wire = [...new Set(copy.wire)].sort();
      // where the way is full, what was delivered does not come again, and whoever sends waits until something has got lost
      if (copy.wire.length > bounds.underWay) copy.wire = copy.wire.filter((other) => other !== message);
      if (copy.wire.length <= bounds.underWay) found.push([name, ageless(copy)]);
    };
  const may = mayAfter();
  clients(state, bounds, may);
  operator(state, bounds, may);
  copying(state, bounds, may);
  handing(state, bounds, may);
  for (const message of state.wire) {
    may(`lose ${message}`, true, (to) => void (to.wire = to.wire.filter((other) => other !== message)));
    toTarget(state, { message, bounds }, mayAfter(message));
    toSource(state, message, mayAfter(message));
  }
  ends(state, may);
  if (state.faults < bounds.faults) breakages(state, may);
  repairs(state, may);
  return found;
}

const present = 10;
const older = -2;

/** Epochs grow for ever; only their order, and which is the next, means something. */
function ageless(state: Live): Live {
  const { source, targets, wire } = state;
  const words = wire.map((message) => message.split(" "));
  const dated = words.filter(([kind]) => kind === "activate" || kind === "activated" || kind === "givenUp");
  const all = [...targets.map(({ epoch }) => epoch), ...dated.map((message) => Number(message[3]))];
  const old = [...new Set(all)].filter((epoch) => epoch > 0 && epoch < source.epoch - 1).sort((a, b) => b - a);
  const renamed = (epoch: number): number =>
    epoch === 0 ? 0 : epoch >= source.epoch - 1 ? present + epoch - source.epoch : present - 2 - old.indexOf(epoch);
  for (const message of dated) message[3] = String(renamed(Number(message[3])));
  for (const target of targets) target.epoch = renamed(target.epoch);
  state.wire = words.map((message) => message.join(" ")).sort();
  source.epoch = present;
  return state;
}

type May = (name: string, condition: boolean, change: (to: Live) => void) => void;

/** The target of this number; there always is one. */
function at({ targets }: Live, index: number): Target {
  const target = targets[index];
  if (target === undefined) throw new Error(`there is no target ${index}`);
  return target;
}

function clients({ source, targets, acknowledged }: Live, { writes }: Bounds, may: May): void {
  may("write at source", source.qemu === "running" && acknowledged < writes, (to) => void (to.source.data = ++to.acknowledged));
  targets.forEach((target, i) => {
    may(`write at ${i}`, target.qemu === "running" && acknowledged < writes, (to) => void (at(to, i).data = ++to.acknowledged));
  });
}

function operator(state: Live, { rules }: Bounds, may: May): void {
  const { source, targets } = state;
  targets.forEach((target, i) => {
    const { epoch } = source.role === "released" ? source : { epoch: source.epoch + 1 };
    // as checkPrepare has it: not while it is the owner, nor at an epoch that it has given up or knows a later one of
    const over = target.role === "released" && (rules.givesUpForGood ? target.epoch >= epoch : target.epoch > epoch);
    const known = target.role === "incoming" && target.epoch === epoch && target.qemu !== "none";
    const wanted = source.role !== "none" && (source.role === "owner" || source.leaving) && !state.deleted;
    may(`prepare ${i}`, source.up && target.up && wanted && target.role !== "owner" && target.epoch <= epoch && !over && !known, (to) => {
      Object.assign(at(to, i), { role: "incoming", epoch, phase: "prepared", qemu: "paused", attempt: -1, data: -1, seal: -1 });
    });
    const asked = source.up && target.up && source.job === "none" && target.role !== "none" && target.role !== "released";
    may(`run ${i}`, asked && source.role === "owner" && target.role === "incoming" && target.epoch === source.epoch + 1, (to) => {
      begin(to, i);
    });
    const led = rules.onePeer ? source.peer === i : true;
    const other = source.peer !== i && target.role === "incoming" && target.epoch === source.epoch;
    may(`run ${i} again`, asked && source.role === "released" && source.leaving && led && (other || source.peer === i), (to) => {
      if (other) begin(to, i);
      else to.source.job = "activating";
    });
    // whoever cancels what is whole gives it up as a node does that has lost it: the source may have let go
    may(`cancel ${i}`, target.up && target.role === "incoming", (to) => {
      const { epoch: given } = target;
      const kept = target.phase === "sealed" ? { role: "released", epoch: given } : { role: "none", epoch: 0 };
      Object.assign(at(to, i), { ...kept, phase: "none", qemu: "none", attempt: -1, data: -1, seal: -1 });
    });
    // as for one that never moved; the other node then has a cloudlet of its own
    may(`delete at ${i}`, target.up && target.role === "owner" && target.phase === "ready" && !source.leaving, (to) => {
      Object.assign(at(to, i), { role: "none", epoch: 0, phase: "none", qemu: "none", data: -1 });
      to.deleted = true;
    });
  });
  // the lock of the cloudlet makes it wait for a move that runs; one that let go refuses
  may("delete at source", source.up && source.role === "owner" && source.job === "none", (to) => {
    Object.assign(to.source, { role: "none", qemu: "none", data: -1 });
    to.deleted = true;
  });
}

/** Two attempts are told from each other, and from all older ones; of those nothing is under way any more. */
function begin(to: Live, peer: number): void {
  const attempt = to.source.attempt === 0 ? 1 : 0;
  to.wire = to.wire.filter((message) => /^(activate|givenUp)/.test(message) || Number(message.split(" ")[2]) !== attempt);
  for (const target of to.targets) if (target.attempt === attempt) target.attempt = older;
  Object.assign(to.source, { job: "copying", peer, attempt, seal: -1 });
}

/** Until the target has everything; any failure leads back. */
function copying({ source, targets }: Live, { rules, rounds }: Bounds, may: May): void {
  const { up, job, role, peer, attempt, data, qemu } = source;
  may("round", rounds && up && job === "copying" && qemu === "running", (to) => {
    // a stream has an order: what it has sent before is before it
    to.wire = to.wire.filter((message) => !message.startsWith(`round ${peer} ${attempt} `));
    to.wire.push(`round ${peer} ${attempt} ${data}`);
  });
  may("pause and send the rest", up && job === "copying", (to) => {
    if (qemu === "running") to.source.qemu = "paused";
    to.wire = to.wire.filter((message) => !message.startsWith(`round ${peer} ${attempt} `));
    to.wire.push(`rest ${peer} ${attempt} ${data}`);
    to.source.job = "sealing";
  });
  may("take back", up && role === "owner" && ["copying", "sealing", "releasing"].includes(job), (to) => {
    Object.assign(to.source, { job: "none", qemu: "running", seal: -1 });
  });
  const target = targets[peer];
  may("lose the target of a copy", up && role === "owner" && job === "copying" && target?.qemu === "off", (to) => {
    Object.assign(to.source, { job: "none", qemu: "running", seal: -1 });
  });
  may("release", up && job === "releasing", (to) => {
    Object.assign(to.source, { role: "released", epoch: source.epoch + 1, leaving: true, job: "activating" });
  });
  may("tell the target before it has let go", !rules.releasesFirst && up && job === "releasing", (to) => {
    to.wire.push(`activate ${peer} ${attempt} ${source.epoch + 1} ${source.seal}`);
  });
}

/** From "released" on: forward, or back with a new epoch once the target has given its own up. */
function handing({ source, targets }: Live, { rules }: Bounds, may: May): void {
  const { up, job, role, peer, attempt, epoch, seal } = source;
  may("give up for now", up && role === "released" && job !== "none", (to) => void (to.source.job = "none"));
  may("go on alone", up && job === "none" && source.leaving, (to) => void (to.source.job = "activating"));
  may("activate", up && job === "activating" && role === "released", (to) => {
    to.wire.push(`activate ${peer} ${attempt} ${epoch} ${seal}`);
  });
  const target = targets[peer];
  may("look", up && job === "watching" && target?.up === true && target.phase === "ready", (to) => void (to.source.job = "discarding"));
  may("discard", up && job === "discarding", (to) => {
    Object.assign(to.source, { qemu: "none", data: -1, leaving: false, job: "none", attempt: -1, seal: -1 });
  });
  targets.forEach((it, i) => {
    const early = !rules.ownsBeforeRunning && it.role === "incoming" && it.phase === "starting";
    may(`start at ${i}`, it.up && it.phase === "starting" && (it.role === "owner" || early), (to) => {
      // a process that died meanwhile is started from the disk, which was whole when it was sealed
      Object.assign(at(to, i), { qemu: "running", ...(it.role === "owner" ? { phase: "ready" } : {}) });
    });
    may(`own at ${i}`, early && it.up, (to) => void Object.assign(at(to, i), { role: "owner" }));
    may(`start again at ${i}`, it.up && it.phase === "ready" && it.qemu !== "running", (to) => void (at(to, i).qemu = "running"));
  });
}

function toTarget(state: Live, { message, bounds }: { message: string; bounds: Bounds }, may: May): void {
  const [kind, ...numbers] = message.split(" ");
  const [i = 0, attempt = 0, third = 0, fourth = 0] = numbers.map(Number);
  const { rules } = bounds;
  const target = at(state, i);
  const takesIn = target.up && target.role === "incoming" && target.qemu === "paused";
  const current = !rules.oneStream || target.attempt === -1 || target.attempt === attempt || state.source.attempt === attempt;
  if (kind === "round") {
    // what belongs to an attempt comes before its end, and ends the attempts before
    const open = target.phase === "prepared" || target.attempt !== attempt || !rules.oneStream;
    may(`deliver ${message}`, takesIn && current && open, (to) => {
      Object.assign(at(to, i), rules.oneStream ? { attempt, data: third, phase: "prepared", seal: -1 } : { data: third });
    });
  }
  if (kind === "rest") {
    may(`deliver ${message}`, takesIn && current, (to) => {
      Object.assign(at(to, i), { attempt, data: third, seal: third, phase: "sealed" });
      to.wire.push(`sealed ${i} ${attempt} ${third}`);
    });
  }
  if (kind !== "activate") return;
  const meant = target.up && target.epoch === third;
  const whole = target.phase === "sealed" && target.attempt === attempt && target.seal === fourth && target.qemu === "paused";
  may(`deliver ${message}`, meant && target.role === "incoming" && whole, (to) => {
    Object.assign(at(to, i), { role: rules.ownsBeforeRunning ? "owner" : "incoming", phase: "starting" });
    to.wire.push(`activated ${i} ${attempt} ${third}`);
  });
  const lost = rules.givesUpUnstarted ? target.role === "incoming" && !whole && target.phase !== "starting" : target.qemu !== "running";
  may(`deliver ${message} in vain`, meant && lost && target.role !== "released", (to) => {
    const kept = rules.givesUpForGood ? { role: "released" } : {};
    Object.assign(at(to, i), { ...kept, phase: "none", qemu: "none", attempt: -1, data: -1, seal: -1 });
    to.wire.push(`givenUp ${i} ${attempt} ${third}`);
  });
  may(`deliver ${message} again`, meant && target.role === "owner", (to) => void to.wire.push(`activated ${i} ${attempt} ${third}`));
  may(`deliver ${message} too late`, meant && target.role === "released", (to) => void to.wire.push(`givenUp ${i} ${attempt} ${third}`));
}

function toSource({ source }: Live, message: string, may: May): void {
  const [kind, ...numbers] = message.split(" ");
  const [i = 0, attempt = 0, third = 0] = numbers.map(Number);
  const mine = source.up && source.peer === i && source.attempt === attempt;
  if (kind === "sealed") {
    may(`deliver ${message}`, mine && source.job === "sealing" && source.data === third, (to) => {
      Object.assign(to.source, { seal: third, job: source.role === "owner" ? "releasing" : "activating" });
    });
  }
  if (source.role !== "released" || source.epoch !== third) return;
  if (kind === "activated") {
    may(`deliver ${message}`, mine && source.job === "activating", (to) => void (to.source.job = "watching"));
  }
  if (kind === "givenUp") {
    // with a later epoch than the one that was given up; the guest goes on where it was paused
    may(`deliver ${message}`, mine && source.job === "activating", (to) => {
      Object.assign(to.source, { role: "owner", epoch: third + 1, leaving: false, job: "none" });
    });
  }
}

/** An owner whose guest should run and does not. */
function ends({ source }: Live, may: May): void {
  may("go on at source", source.up && source.role === "owner" && source.job === "none" && source.qemu !== "running", (to) => {
    to.source.qemu = "running";
  });
}

function breakages({ source, targets }: Live, may: May): void {
  const dead = (qemu: Qemu): Qemu => (qemu === "none" ? "none" : "off");
  const fault = (name: string, condition: boolean, change: (to: Live) => void): void =>
    may(name, condition, (to) => {
      change(to);
      to.faults++;
    });
  const noJob = source.leaving ? { job: "none" } : { job: "none", seal: -1 };
  fault("kill the source's agent", source.up, (to) => Object.assign(to.source, { up: false, ...noJob }));
  fault("kill the source's QEMU", ["running", "paused"].includes(source.qemu), (to) => void (to.source.qemu = "off"));
  fault("pull the source's plug", source.up, (to) => Object.assign(to.source, { up: false, qemu: dead(source.qemu), ...noJob }));
  targets.forEach((target, i) => {
    fault(`kill the agent of ${i}`, target.up, (to) => void (at(to, i).up = false));
    fault(`kill the QEMU of ${i}`, ["running", "paused"].includes(target.qemu), (to) => void (at(to, i).qemu = "off"));
    fault(`pull the plug of ${i}`, target.up, (to) => Object.assign(at(to, i), { up: false, qemu: dead(target.qemu) }));
  });
}

function repairs({ source, targets }: Live, may: May): void {
  may("start the source's agent", !source.up, (to) => void (to.source.up = true));
  targets.forEach((target, i) => may(`start the agent of ${i}`, !target.up, (to) => void (at(to, i).up = true)));
}
