import { setTimeout as delay } from "node:timers/promises";
import { afterEach, expect, it } from "vitest";
import { connectQmp } from "../../../provider/hypervisors/qemu/qmp.ts";
import { queryStatus, snapshotJob } from "../../../provider/hypervisors/qemu/qmpCommands.ts";
import { fakeQmp, qmpGreeting } from "../../fakes/qmp.ts";
import type { FakeQmp, FakeQmpOptions } from "../../fakes/qmp.ts";

let fake: FakeQmp | undefined;
afterEach(async () => {
  await fake?.close();
  fake = undefined;
});

async function open(options: Partial<FakeQmpOptions>, deadlines: Record<string, number> = {}) {
  fake = await fakeQmp({ greeting: qmpGreeting, answer: () => undefined, ...options });
  return connectQmp(fake.socketPath, { guest: "demo", deadlines });
}

it("greets, takes its capabilities and matches answers to commands by id, in any order", async () => {
  const waiting: string[] = [];
  const qmp = await open({
    answer(command, socket) {
      waiting.push(command.id);
      if (waiting.length === 2) for (const id of waiting.toReversed()) socket.write(`{"return": {"id": "${id}"}, "id": "${id}"}\r\n`);
    },
  });
  const [first, second] = await Promise.all([qmp.execute("one"), qmp.execute("two", { a: 1 })]);
  expect([first, second]).toEqual([{ id: "c2" }, { id: "c3" }]);
  expect(fake?.received.map((command) => command.execute)).toEqual(["qmp_capabilities", "one", "two"]);
  expect(fake?.received[2]?.arguments).toEqual({ a: 1 });
  qmp.close();
});

it("puts together an answer that arrives in pieces, between events", async () => {
  const qmp = await open({
    async answer(command, socket) {
      const text = `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}\r\n{"return": {"status": "pau§sed", "running": false}, "id": "${command.id}"}\r\n{"event":"RESUME"}\r\n`;
      for (const byte of Buffer.from(text)) {
        socket.write(Buffer.from([byte]));
        if (byte === 0xc2) await delay(5);
      }
    },
  });
  expect(await queryStatus(qmp)).toEqual({ status: "pau§sed", running: false });
  expect(qmp.events.map((event) => event.event)[0]).toBe("STOP");
  qmp.close();
});

it("takes a line of several megabytes", async () => {
  const huge = "x".repeat(5_000_000);
  const qmp = await open({ answer: (command, socket) => void socket.write(`{"return": "${huge}", "id": "${command.id}"}\n`) });
  expect(await qmp.execute("query-huge")).toBe(huge);
  qmp.close();
});

it("rejects everything that waits when a line is malformed", async () => {
  const qmp = await open({ answer: (_command, socket) => void socket.write('{"return": {]\r\n') });
  await expect(qmp.execute("query-status")).rejects.toMatchObject({ code: "FAILED", message: expect.stringContaining("malformed") });
  await expect(qmp.execute("query-status")).rejects.toMatchObject({ code: "FAILED" });
});

it("says what QEMU refused, in QEMU's words", async () => {
  const qmp = await open({
    answer: (command, socket) =>
      void socket.write(`{"error": {"class": "GenericError", "desc": "Bus 'pci' not found"}, "id": "${command.id}"}\n`),
  });
  await expect(qmp.execute("device_add")).rejects.toMatchObject({
    code: "FAILED",
    message: "QEMU refused device_add for guest demo: Bus 'pci' not found",
  });
  qmp.close();
});

it("gives up a silent command at its own deadline", async () => {
  const qmp = await open({}, { "query-status": 50 });
  await expect(qmp.execute("query-status")).rejects.toMatchObject({
    code: "UNREACHABLE",
    message: "QMP of guest demo did not answer query-status within 50 ms",
  });
  qmp.close();
});

it("gives up where nobody greets, and where nobody listens", async () => {
  await expect(open({ greeting: undefined }, { greeting: 50 })).rejects.toMatchObject({ code: "UNREACHABLE" });
  await expect(connectQmp("/nonexistent/qmp.sock", { guest: "demo" })).rejects.toMatchObject({ code: "UNREACHABLE" });
});

it("rejects what waits when the connection ends", async () => {
  const qmp = await open({ answer: (_command, socket) => void socket.destroy() });
  await expect(qmp.execute("query-status")).rejects.toMatchObject({ code: "UNREACHABLE" });
});

it("follows a snapshot job to its end and carries its error", async () => {
  let asked = 0;
  let job = "";
  const qmp = await open({
    answer(command, socket) {
      const args = command.arguments;
      if (command.execute === "snapshot-save" && typeof args === "object" && args !== null && "job-id" in args)
        job = String(args["job-id"]);
      const jobs = [{ id: job, status: asked++ < 3 ? "running" : "concluded", error: "no space" }];
      socket.write(`${JSON.stringify({ return: command.execute === "query-jobs" ? jobs : {}, id: command.id })}\n`);
    },
  });
  const failing = snapshotJob(qmp, { command: "snapshot-save", tag: "t", signal: AbortSignal.timeout(5_000), timeoutMillis: 5_000 });
  await expect(failing).rejects.toMatchObject({ code: "FAILED", message: expect.stringContaining("no space") });
  expect(fake?.received.at(-1)?.execute).toBe("job-dismiss");
  qmp.close();
});
