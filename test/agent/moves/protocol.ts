/** The ownership protocol of a move as a pure model: what each side knows, what is on its way, and what may happen next. */
export interface State {
  source: {
    up: boolean;
    role: "owner" | "released";
    leaving: boolean;
    guest: "running" | "stopped" | "none";
    data: number;
    job: Job;
    seal: number;
  };
  target: {
    up: boolean;
    role: "none" | "incoming" | "owner";
    phase: "none" | "prepared" | "sealed" | "starting" | "ready";
    guest: "running" | "stopped" | "none";
    data: number;
    seal: number;
  };
  /** Requests and answers on their way. */
  wire: string[];
  /** Writes that a client of the application has seen acknowledged. */
  acknowledged: number;
  faults: number;
}

/** Where the source's job stands; `none` after a crash and before an operator asks. */
type Job = "none" | "stopping" | "sending" | "sealing" | "releasing" | "activating" | "watching" | "discarding" | "telling";

export interface Bounds {
  writes: number;
  faults: number;
}

export const start: State = {
  source: { up: true, role: "owner", leaving: false, guest: "running", data: 0, job: "none", seal: -1 },
  target: { up: true, role: "none", phase: "none", guest: "none", data: -1, seal: -1 },
  wire: [],
  acknowledged: 0,
  faults: 0,
};

type Change = (state: State) => void;

/** Everything that may happen next, by name. */
export function next(state: State, bounds: Bounds): [string, State][] {
  const found: [string, State][] = [];
  const may = (name: string, condition: boolean, change: Change): void => {
    if (!condition) return;
    const copy: State = { ...state, source: { ...state.source }, target: { ...state.target }, wire: [...state.wire] };
    change(copy);
    if (copy.wire.length > state.wire.length) copy.wire = [...new Set(copy.wire)].sort();
    found.push([name, copy]);
  };
  clients(state, bounds, may);
  operator(state, may);
  sourceSteps(state, may);
  deliveries(state, may);
  targetSteps(state, may);
  if (state.faults < bounds.faults) breakages(state, may);
  repairs(state, may);
  return found;
}

type May = (name: string, condition: boolean, change: Change) => void;

function clients({ source, target, acknowledged }: State, { writes }: Bounds, may: May): void {
  may("write at source", source.guest === "running" && acknowledged < writes, (to) => void (to.source.data = ++to.acknowledged));
  may("write at target", target.guest === "running" && acknowledged < writes, (to) => void (to.target.data = ++to.acknowledged));
}

function operator({ source, target }: State, may: May): void {
  may("prepare", target.up && target.role === "none", (to) => {
    Object.assign(to.target, { role: "incoming", phase: "prepared" });
  });
  may("run", source.up && target.up && target.role !== "none" && source.job === "none" && source.role === "owner", (to) => {
    to.source.job = "stopping";
  });
  const lost = target.phase === "prepared" || (target.phase === "sealed" && target.seal !== source.seal);
  may("run again", source.up && target.up && source.job === "none" && source.leaving && target.role === "incoming" && lost, (to) => {
    to.source.job = "sending";
  });
  may("cancel", target.up && target.role === "incoming", (to) => {
    to.target = { ...to.target, role: "none", phase: "none", guest: "none", data: -1, seal: -1 };
  });
}

function sourceSteps({ source, target }: State, may: May): void {
  const { up, job, role } = source;
  may("stop", up && job === "stopping", (to) => Object.assign(to.source, { guest: "stopped", job: "sending" }));
  may("send", up && job === "sending", (to) => {
    to.wire.push(`seal ${to.source.data}`);
    to.source.job = "sealing";
  });
  may("take back", up && role === "owner" && ["sending", "sealing", "releasing"].includes(job), (to) => {
    Object.assign(to.source, { job: "none", guest: "running", seal: -1 });
  });
  may("give up for now", up && role === "released" && job !== "none", (to) => void (to.source.job = "none"));
  may("release", up && job === "releasing", (to) => {
    Object.assign(to.source, { role: "released", leaving: true, job: "activating" });
  });
  may("activate", up && job === "activating", (to) => void to.wire.push(`activate ${to.source.seal}`));
  may("go on alone", up && job === "none" && source.leaving, (to) => void (to.source.job = "activating"));
  may("look", up && target.up && job === "watching" && target.phase === "ready", (to) => void (to.source.job = "discarding"));
  may("discard", up && job === "discarding", (to) => {
    Object.assign(to.source, { guest: "none", data: -1, leaving: false, job: "none" });
  });
}

/** A message that is delivered stays on its way, too: it may arrive again. */
function deliveries({ wire, source, target }: State, may: May): void {
  for (const message of wire) {
    const [kind, number] = message.split(" ");
    const data = Number(number);
    may(`lose ${message}`, true, (to) => void (to.wire = to.wire.filter((other) => other !== message)));
    if (kind === "seal") {
      may(`deliver ${message}`, target.up && target.role === "incoming", (to) => {
        Object.assign(to.target, { data, seal: data, guest: "stopped", phase: "sealed" });
        to.wire.push(`sealed ${data}`);
      });
    }
    if (kind === "sealed") {
      may(`deliver ${message}`, source.up && source.job === "sealing" && source.data === data, (to) => {
        Object.assign(to.source, { seal: data, job: to.source.role === "owner" ? "releasing" : "activating" });
      });
    }
    if (kind === "activate") {
      may(`deliver ${message}`, target.up && target.phase === "sealed" && target.seal === data, (to) => {
        Object.assign(to.target, { role: "owner", phase: "starting" });
        to.wire.push("activated");
      });
      may(`repeat ${message}`, target.up && target.role === "owner", (to) => void to.wire.push("activated"));
    }
    may(
      `deliver ${message}`,
      message === "activated" && source.up && source.job === "activating",
      (to) => void (to.source.job = "watching"),
    );
  }
}

function targetSteps({ target }: State, may: May): void {
  may("start at target", target.up && target.phase === "starting", (to) => Object.assign(to.target, { guest: "running", phase: "ready" }));
  may("recover at target", target.up && target.phase === "ready" && target.guest === "stopped", (to) => void (to.target.guest = "running"));
}

function breakages({ source, target }: State, may: May): void {
  may("kill the source's agent", source.up, (to) => void (Object.assign(to.source, { up: false, job: "none" }), to.faults++));
  may("kill the target's agent", target.up, (to) => void ((to.target.up = false), to.faults++));
  may("pull the source's plug", source.up, (to) => {
    Object.assign(to.source, { up: false, job: "none", guest: to.source.guest === "none" ? "none" : "stopped" });
    to.faults++;
  });
  may("pull the target's plug", target.up, (to) => {
    Object.assign(to.target, { up: false, guest: to.target.guest === "none" ? "none" : "stopped" });
    to.faults++;
  });
}

function repairs({ source, target }: State, may: May): void {
  may("start the source's agent", !source.up, (to) => {
    to.source.up = true;
    if (to.source.role === "owner") to.source.guest = "running";
  });
  may("start the target's agent", !target.up, (to) => void (to.target.up = true));
}
