import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { applyInstance } from "../../../provider/agent/instanceApply.ts";
import { openOwned } from "../../../provider/agent/instances.ts";
import { exportRunning, type FilePart } from "../../../provider/agent/moves/exporting.ts";
import { CloudletError } from "../../../provider/core/errors.ts";
import { context, spec, testAgent, type TestAgent } from "../fixture.ts";

const copied: FilePart = { name: "container.tar", path: "/container.tar", format: "tar" };
const gone = new CloudletError("FAILED", "lstat /own/gone: no such file or directory");
const full = new CloudletError("REFUSED", "72 MiB do not fit");

describe("the copy of a container that runs", () => {
  let agent: TestAgent;
  beforeEach(async () => {
    agent = await testAgent();
    await applyInstance(agent.services, { spec: spec(await agent.store("base")), fresh: false }, context());
  });
  afterEach(() => agent.remove());

  it.each([
    { when: "at once", failures: [], parts: [copied], attempts: 1, said: [] },
    {
      when: "when a file went while it was read",
      failures: [gone],
      parts: [copied],
      attempts: 2,
      said: [/^copying shop\/counter once more: .*gone/],
    },
    {
      when: "not when that happens twice",
      failures: [gone, gone],
      parts: [],
      attempts: 2,
      said: [/once more/, /^shop\/counter is only copied once it stands still: .*gone/],
    },
    {
      when: "not when there is no room",
      failures: [full],
      parts: [],
      attempts: 1,
      said: [/only copied once it stands still: .*do not fit/],
    },
  ])("is there: $when", async ({ failures, parts, attempts, said }) => {
    const told: string[] = [];
    const left = [...failures];
    let made = 0;
    const ahead = {
      diskBytes: () => Promise.resolve(1),
      exportParts: () => {
        made++;
        const failure = left.shift();
        return failure === undefined ? Promise.resolve([copied]) : Promise.reject(failure);
      },
    };
    const opened = await openOwned(agent.services, "shop/counter");
    const watched = { ...context(), status: (text: string) => void told.push(text) };
    expect(await exportRunning(agent.services, opened, { ahead, context: watched })).toEqual(parts);
    expect(made).toBe(attempts);
    expect(told).toEqual(["copying shop/counter while it runs", ...said.map((text): unknown => expect.stringMatching(text))]);
  });
});
