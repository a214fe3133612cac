import type { Opened } from "../instances.ts";
import type { JobContext } from "../jobs.ts";
import type { Services } from "../services.ts";
import type { MoveChannel } from "./channel.ts";
import { compress } from "./compression.ts";
import { allFrames, bytesOf, exportRunning, type FilePart } from "./exporting.ts";
import { makeRecipe, type Recipe } from "./recipe.ts";
import { missingSchema, type Arrival } from "./wire.ts";

interface Way {
  channel: MoveChannel;
  context: JobContext;
  /** The target's name, for messages. */
  node: string;
}

/** Sends what the target lacks of files. */
export async function send(
  mode: "cold" | "state",
  { parts, recipes }: { parts: FilePart[]; recipes: Recipe[] },
  { channel, context, node }: Way,
): Promise<void> {
  const body = { mode, parts: recipes };
  const { missing } = await channel.patiently(missingSchema, { method: "PUT", path: "/v1/recipes", body, signal: context.signal });
  if (missing.length === 0) return;
  const wanted = new Set(missing);
  context.status(`sending ${(bytesOf(recipes, wanted) / 1e6).toFixed(1)} MB to ${node}`);
  await channel.stream("/v1/pieces", compress(allFrames(parts, wanted)), { signal: context.signal });
}

/** Most of what the target lacks of a container, while it still runs. It decides nothing: what is sealed is what there is once it has stopped. Returns the bytes. */
export async function sendAhead(
  services: Services,
  opened: Opened,
  { arrival, persist, ...way }: Way & { arrival: Arrival; persist(attempt: () => Promise<void>): Promise<void> },
): Promise<number> {
  const { record, driver } = opened;
  const { channel, context, node } = way;
  if (driver.ahead === undefined || record.spec.state !== "running") return 0;
  if (arrival.takesAhead !== true) {
    context.status(
      `${record.spec.id} is only copied once it stands still: the agent of ${node} is older, and would not keep what comes before`,
    );
    return 0;
  }
  const before = channel.bytesSent;
  const parts = await exportRunning(services, opened, { ahead: driver.ahead, context });
  if (parts.length === 0) return 0;
  const recipes = await recipesOf(parts);
  await persist(() => send("cold", { parts, recipes }, way));
  context.step("ahead");
  return channel.bytesSent - before;
}

export async function recipesOf(parts: readonly FilePart[]): Promise<Recipe[]> {
  const recipes: Recipe[] = [];
  for (const part of parts) recipes.push(await makeRecipe(part.name, part.path, part.format));
  return recipes;
}
