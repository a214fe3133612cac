import { appendFileSync, mkdtempSync, readFileSync, readdirSync, rmSync, utimesSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { Jobs } from "../../provider/agent/jobs.ts";
import type { JobContext } from "../../provider/agent/jobs.ts";
import { KeyedLock } from "../../provider/agent/keyedLock.ts";
import type { JobEvent } from "../../provider/agent/jobProtocol.ts";

let directory = "";
beforeEach(() => {
  directory = mkdtempSync(join(tmpdir(), "cloudlet-jobs-test-"));
});
afterEach(() => {
  rmSync(directory, { recursive: true, force: true });
});

const open = () => new Jobs({ directory, lock: new KeyedLock() });
const work = (perform: (context: JobContext) => Promise<unknown>, keys: string[] = []) => ({ verb: "test", keys, perform });

function openGate(): { promise: Promise<void>; resolve(): void } {
  let resolve = (): void => undefined;
  const promise = new Promise<void>((done) => (resolve = done));
  return { promise, resolve };
}

async function eventsOf(jobs: Jobs, id: string, from = 0): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  for await (const event of jobs.events(id, from, AbortSignal.timeout(5_000))) events.push(event);
  return events;
}

describe("a job", () => {
  it("tells its steps and its result in order", async () => {
    const jobs = open();
    jobs.start(
      "a",
      work((context) => {
        context.step("one");
        context.status("busy");
        return Promise.resolve({ answer: 42 });
      }),
    );
    const events = await eventsOf(jobs, "a");
    expect(events.map((event) => event.type)).toEqual(["begun", "step", "progress", "done"]);
    expect(events.map((event) => event.seq)).toEqual([0, 1, 2, 3]);
    expect(events.at(-1)).toMatchObject({ result: { answer: 42 } });
  });

  it("does what comes first before it waits for its turn", async () => {
    const jobs = open();
    const gate = openGate();
    jobs.start(
      "a",
      work(() => gate.promise, ["x"]),
    );
    // what the one before it waits for
    const first = (): Promise<void> => Promise.resolve(gate.resolve());
    jobs.start("b", { ...work(() => Promise.resolve("second"), ["x"]), first });
    expect((await eventsOf(jobs, "b")).at(-1)).toMatchObject({ type: "done", result: "second" });
  });

  it("is attached to, not started twice, while it runs", async () => {
    const jobs = open();
    const gate = openGate();
    let runs = 0;
    const slow = work(() => {
      runs++;
      return gate.promise;
    });
    expect(jobs.start("a", slow)).toEqual({ attached: false });
    expect(jobs.start("a", slow)).toEqual({ attached: true });
    expect(jobs.running()).toEqual(["a"]);
    gate.resolve();
    await eventsOf(jobs, "a");
    expect(runs).toBe(1);
    expect(
      jobs.start(
        "a",
        work(() => Promise.resolve(1)),
      ),
    ).toEqual({ attached: false });
  });

  it("gives events from the one asked for on, also to those who come late", async () => {
    const jobs = open();
    jobs.start(
      "a",
      work((context) => Promise.resolve(context.step("one"))),
    );
    await eventsOf(jobs, "a");
    expect((await eventsOf(jobs, "a", 1)).map((event) => event.seq)).toEqual([1, 2]);
  });

  it("ends with the code, text and remedy of what went wrong", async () => {
    const jobs = open();
    jobs.start(
      "a",
      work(() => Promise.reject(new TypeError("oops"))),
    );
    expect((await eventsOf(jobs, "a")).at(-1)).toMatchObject({ type: "failed", error: { code: "BUG" } });
  });

  it("is cancelled by its signal", async () => {
    const jobs = open();
    jobs.start(
      "a",
      work(({ signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)))),
    );
    jobs.cancel("a");
    expect((await eventsOf(jobs, "a")).at(-1)).toMatchObject({
      type: "failed",
      error: { code: "ABORTED", message: "job a was cancelled" },
    });
  });

  it("that is asked for again while its cancellation takes its time begins anew", async () => {
    const jobs = open();
    const gate = openGate();
    jobs.start(
      "a",
      work(async ({ signal }) => {
        await gate.promise;
        signal.throwIfAborted();
      }),
    );
    jobs.cancel("a");
    const ended = jobs.endOfCancelled("a");
    gate.resolve();
    await ended;
    expect(
      jobs.start(
        "a",
        work(() => Promise.resolve("anew")),
      ),
    ).toEqual({ attached: false });
    expect((await eventsOf(jobs, "a")).at(-1)).toMatchObject({ type: "done", result: "anew" });
  });

  it("waits for another that touches the same thing, and for no other", async () => {
    const jobs = open();
    const gate = openGate();
    const order: string[] = [];
    jobs.start(
      "a",
      work(async () => {
        await gate.promise;
        order.push("a");
      }, ["instance:x", "volume:v"]),
    );
    jobs.start(
      "b",
      work(() => Promise.resolve(order.push("b")), ["volume:v"]),
    );
    jobs.start(
      "c",
      work(() => Promise.resolve(order.push("c")), ["instance:y"]),
    );
    await eventsOf(jobs, "c");
    gate.resolve();
    const events = await eventsOf(jobs, "b");
    expect(order).toEqual(["c", "a", "b"]);
    expect(events[1]).toMatchObject({ type: "progress", text: "waiting for another operation on volume:v" });
  });

  it("can be cancelled while it waits, and lets those behind it go on", async () => {
    const jobs = open();
    const gate = openGate();
    jobs.start(
      "a",
      work(() => gate.promise, ["k"]),
    );
    jobs.start(
      "b",
      work(() => Promise.resolve(), ["k"]),
    );
    jobs.start(
      "c",
      work(() => Promise.resolve("c"), ["k"]),
    );
    jobs.cancel("b");
    expect((await eventsOf(jobs, "b")).at(-1)).toMatchObject({ error: { code: "ABORTED" } });
    gate.resolve();
    expect((await eventsOf(jobs, "c")).at(-1)).toMatchObject({ result: "c" });
  });

  it("has each step in its journal before the next thing happens, and never its result", async () => {
    const jobs = open();
    let seen = "";
    jobs.start(
      "a",
      work((context) => {
        context.step("one");
        seen = readFileSync(join(directory, "a.jsonl"), "utf8");
        return Promise.resolve({ token: "secret-token" });
      }),
    );
    await eventsOf(jobs, "a");
    expect(seen).toContain('"name":"one"');
    expect(readFileSync(join(directory, "a.jsonl"), "utf8")).not.toContain("secret-token");
  });
});

describe("after the agent was killed", () => {
  const line = (event: JobEvent) => `${JSON.stringify(event)}\n`;

  it("an unfinished job has failed with ABORTED, even where its last line was cut off", async () => {
    writeFileSync(join(directory, "a.jsonl"), line({ type: "begun", seq: 0, at: "t", verb: "x" }));
    appendFileSync(join(directory, "a.jsonl"), '{"type":"step","se');
    const events = await eventsOf(open(), "a");
    expect(events.at(-1)).toMatchObject({ type: "failed", seq: 1, error: { code: "ABORTED", message: "agent restarted" } });
  });

  it("a finished job is unknown, so that asking again yields its result", async () => {
    writeFileSync(
      join(directory, "a.jsonl"),
      line({ type: "begun", seq: 0, at: "t", verb: "x" }) + line({ type: "done", seq: 1, at: "t", result: null }),
    );
    await expect(eventsOf(open(), "a")).rejects.toMatchObject({ code: "NOT_FOUND" });
  });

  it("old journals are removed", () => {
    writeFileSync(join(directory, "old.jsonl"), line({ type: "begun", seq: 0, at: "t", verb: "x" }));
    utimesSync(join(directory, "old.jsonl"), new Date(0), new Date(0));
    open();
    expect(readdirSync(directory)).toEqual([]);
  });
});
