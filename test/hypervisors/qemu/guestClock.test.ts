import { afterEach, describe, expect, it } from "vitest";
import { catchUpClock } from "../../../provider/hypervisors/qemu/lifecycle.ts";
import type { Guest } from "../../../provider/hypervisors/types.ts";
import { FakeGuestAgent } from "../../fakes/guestAgent.ts";
import { digestText, spec } from "../../agent/fixture.ts";

let agent: FakeGuestAgent;
afterEach(() => agent.close());

const ended = { return: { exited: true, exitcode: 0 } };
/** An agent whose guest's clock is so far from this machine's; without hwclock it cannot set it. */
async function open(aheadMillis: number, { hwclock = true } = {}): Promise<void> {
  agent = new FakeGuestAgent({
    "guest-ping": () => ({ return: {} }),
    "guest-get-time": () => ({ return: (Date.now() + aheadMillis) * 1e6 }),
    "guest-set-time": () => (hwclock ? { return: {} } : { error: { desc: "hwclock is not there" } }),
    "guest-exec": () => ({ return: { pid: 7 } }),
    "guest-exec-status": () => ended,
  });
  await agent.open();
}

async function catchUp(): Promise<string[]> {
  const said: string[] = [];
  const guest: Guest = {
    name: "counter",
    spec: spec(digestText("base")),
    basePath: "",
    buildPath: undefined,
    directory: agent.directory,
    network: { bridge: "b", mac: "m", address: "a", prefix: 16, gateway: "g" },
    volumes: [],
  };
  await catchUpClock(guest, { log: (line) => said.push(line) });
  return said;
}
const argsOf = (command: string) => agent.asked.filter((asked) => asked.command === command).map(({ args }) => args);

describe("the clock of a guest that was paused", () => {
  it("is set to the present by its agent", async () => {
    await open(-700);
    expect(await catchUp()).toEqual([]);
    const [{ time } = {}] = argsOf("guest-set-time");
    expect(Math.abs(Number(time) / 1e6 - Date.now())).toBeLessThan(5_000);
    expect(argsOf("guest-exec")).toEqual([]);
  });

  it("is never set back", async () => {
    await open(30_000);
    expect(await catchUp()).toEqual([]);
    expect(agent.asked.map(({ command }) => command)).toEqual(["guest-ping", "guest-get-time"]);
  });

  it("is set at the turn of a second, and only forwards, in a guest without hwclock", async () => {
    await open(-700, { hwclock: false });
    expect(await catchUp()).toEqual([]);
    const second = Math.floor(Date.now() / 1000);
    const [{ arg } = {}] = argsOf("guest-exec");
    const script = /^\[ "\$\(date \+%s\)" -ge (\d+) \] \|\| date -s @\1$/.exec((arg as string[])[1] ?? "");
    expect(second - Number(script?.[1])).toBeLessThan(5);
  });

  it("stays as it is where its agent refuses, and that is said", async () => {
    agent = new FakeGuestAgent({ "guest-ping": () => ({ return: {} }) });
    await agent.open();
    expect((await catchUp()).join()).toContain("the clock of guest counter was not set: guest agent of counter refused guest-get-time");
  });
});
