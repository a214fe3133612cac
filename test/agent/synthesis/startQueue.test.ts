import { expect, it } from "vitest";
import { StartQueue } from "../../../provider/agent/synthesis/startQueue.ts";

const progress = () => ({ signal: new AbortController().signal, status: () => undefined });

/** A start that goes on until it is told to end. */
function start(queue: StartQueue, size: { cores: number; memoryMib: number }, signal = new AbortController().signal) {
  const said: string[] = [];
  let running = false;
  let end = (): void => undefined;
  const ended = queue.run(size, { signal, status: (text) => void said.push(text) }, async () => {
    running = true;
    await new Promise<void>((resolve) => (end = resolve));
  });
  return { said, ended, isRunning: () => running, end: () => (end(), ended) };
}

const soon = () => new Promise((resolve) => setTimeout(resolve, 5));

it("starts as many at once as there are cores, in the order in which they came", async () => {
  const queue = new StartQueue(2, () => 10_000);
  const starts = [1, 1, 1, 1].map((cores) => start(queue, { cores, memoryMib: 1 }));
  await soon();
  expect(starts.map((it) => it.isRunning())).toEqual([true, true, false, false]);
  expect(starts[3]?.said).toEqual(["waiting for 3 other starts on this node"]);
  await starts[0]?.end();
  await soon();
  expect(starts.map((it) => it.isRunning())).toEqual([true, true, true, false]);
  for (const it of starts.slice(1)) {
    await soon();
    await it.end();
  }
});

it("waits for memory too, but never where nothing else starts", async () => {
  const queue = new StartQueue(8, () => 1_000);
  const large = start(queue, { cores: 16, memoryMib: 4_000 });
  const small = start(queue, { cores: 1, memoryMib: 600 });
  const other = start(queue, { cores: 1, memoryMib: 600 });
  await soon();
  expect([large, small, other].map((it) => it.isRunning())).toEqual([true, false, false]);
  await large.end();
  await soon();
  expect([small, other].map((it) => it.isRunning())).toEqual([true, false]);
  await small.end();
  await soon();
  await other.end();
});

it("one that is cancelled while it waits lets those behind it go on", async () => {
  const queue = new StartQueue(2, () => 10_000);
  const cancel = new AbortController();
  const first = start(queue, { cores: 1, memoryMib: 1 });
  const large = start(queue, { cores: 2, memoryMib: 1 }, cancel.signal);
  const small = start(queue, { cores: 1, memoryMib: 1 });
  await soon();
  expect(small.isRunning()).toBe(false);
  cancel.abort(new Error("enough"));
  await expect(large.ended).rejects.toThrow("enough");
  await soon();
  expect(small.isRunning()).toBe(true);
  await first.end();
  await soon();
  await small.end();
});

it("a failed start frees its place", async () => {
  const queue = new StartQueue(1, () => 10_000);
  await expect(queue.run({ cores: 1, memoryMib: 1 }, progress(), () => Promise.reject(new Error("no")))).rejects.toThrow("no");
  expect(await queue.run({ cores: 1, memoryMib: 1 }, progress(), () => Promise.resolve("yes"))).toBe("yes");
});
