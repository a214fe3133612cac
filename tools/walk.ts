import { lastMoveOf, openWalk, row, type GatewayOnTheWay, type Walk } from "../test/walk.ts";
import { expectOk, shownMove, step } from "./step.ts";

console.log("examples/following-subscriber on this machine: three gateways in a row, and a subscriber who walks past them.");
const began = performance.now();
const walk = await step("starting three gateways and a subscriber, each a host of its own", () => openWalk("walk"));
process.once("SIGINT", () => void walk.close().finally(() => process.exit(130)));

try {
  await walk.subscriberIsAt("gw1");
  await step("pulumi up: commission the gateways, place the base, build the overlay, start the application on gateway 1", () =>
    expectOk(walk.stack.up()),
  );
  await step("the subscriber sets out with a session that is only in the application's memory", () => walk.setOut());
  const moves = [];
  for (const to of row.slice(1)) moves.push(await follow(walk, to));
  const told = await step("the subscriber arrives", () => walk.arrive());
  await step("pulumi destroy", () => expectOk(walk.stack.destroy()));
  console.table(moves);
  console.table(
    told.flatMap(({ gateway, session, steps, silenceMillis }) =>
      gateway === undefined ? [] : [{ gateway, session, "steps so far": steps, "silence before (ms)": silenceMillis }],
    ),
  );
  const end = told.at(-1);
  console.log(`The session had ${end?.steps} steps and never went back; the longest silence was ${end?.longestSilenceMillis} ms.`);
  console.log(`Done in ${((performance.now() - began) / 1000).toFixed(0)} s.`);
} finally {
  await walk.close();
}

async function follow(walk: Walk, to: GatewayOnTheWay): Promise<Record<string, string | number>> {
  await walk.subscriberIsAt(to);
  const preview = await step(`the subscriber is at ${to}: pulumi preview`, () => expectOk(walk.stack.preview()));
  console.log(shownMove(preview));
  const report = lastMoveOf(await step("pulumi up: follow", () => expectOk(walk.stack.up())));
  return {
    from: report.from,
    to: report.to,
    mode: report.mode,
    rounds: report.rounds?.length ?? 0,
    "bytes sent": report.bytesSent,
    "in all (ms)": report.totalMillis,
    "away (ms)": report.downtimeMillis,
  };
}
