import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout } from "node:timers/promises";
import { z } from "zod";
import type { Context } from "../../provider/core/context.ts";
import { defineResource } from "../../provider/core/define.ts";
import { CloudletError } from "../../provider/core/errors.ts";
import { local } from "../../provider/local/files.ts";

const inputs = z.strictObject({
  folder: z.string().describe("Stands for the node.").meta({ replaces: true }),
  name: z
    .string()
    .regex(/^[a-z]+$/, "must be lower-case letters")
    .meta({ replaces: true }),
  content: z.string().default("empty").describe("Text."),
  tags: z.array(z.string()).default([]).meta({ set: true }),
  ports: z
    .array(z.strictObject({ port: z.int().min(1).max(65535), hostPort: z.int().optional() }))
    .default([])
    .meta({ set: true }),
  login: z.strictObject({ user: z.string().default("root"), password: z.string().optional().meta({ secret: true }) }).optional(),
  /** Makes apply fail after the file was written. */
  breaks: z.boolean().default(false),
  /** Seconds that apply takes after the file was written. */
  slow: z.int().default(0),
});
type Inputs = z.infer<typeof inputs>;
const outputs = z.strictObject({ size: z.int(), serial: z.string() });

/** A resource that is one JSON file; the folder is the node, and a folder that is gone does not answer. */
export const toy = defineResource({
  token: "cloudlet:index:Toy",
  description: "A file.",
  inputs,
  outputs,
  identity: ({ name }) => name,
  constraints: ({ content, name }, { declared }) => [
    ...(content === "forbidden" ? [{ path: "content", message: "is forbidden; choose another" }] : []),
    ...[...declared("cloudlet:index:Toy")].flatMap(([other, theirs]) =>
      theirs["content"] === content && content === "unique"
        ? [{ path: "content", message: `${String(name)} has what ${other} has; change one` }]
        : [],
    ),
  ],
  predict: ({ content }) => (content === undefined ? {} : { size: content.length }),
  adopt({ id }, context) {
    const [name = "", folder = ""] = id.split("@");
    return observe(inputs.parse({ name, folder }), context);
  },
  observe,
  async apply(want, _old, context) {
    await context.host({ host: want.folder });
    context.status(`writing ${want.name}`);
    if (want.content === "warn") context.warn("look at this");
    writeFileSync(join(want.folder, want.name), JSON.stringify(want));
    if (want.slow > 0) await setTimeout(want.slow * 1000, undefined, { signal: context.signal });
    if (want.breaks) throw new CloudletError("FAILED", `writing ${want.name} broke`);
  },
  async remove(have, context) {
    await context.host({ host: have.folder });
    rmSync(join(have.folder, have.name), { force: true });
  },
});

export function toyContext(report: Pick<Context, "status" | "warn">, signal = AbortSignal.timeout(60_000)): Context {
  const absent = (): never => {
    throw new CloudletError("BUG", "the toy has none");
  };
  return {
    signal,
    ...report,
    local,
    agent: absent,
    lxd: absent,
    commission: { apply: absent, observe: absent, remove: absent },
    host: ({ host }) =>
      existsSync(host)
        ? Promise.resolve({ label: host } as never)
        : Promise.reject(new CloudletError("UNREACHABLE", `${host} does not answer`)),
  };
}

async function observe(known: Inputs, context: Context): Promise<(Inputs & z.infer<typeof outputs>) | undefined> {
  await context.host({ host: known.folder });
  const file = join(known.folder, known.name);
  if (!existsSync(file)) return undefined;
  const stored = inputs.parse(JSON.parse(readFileSync(file, "utf8")));
  return { ...stored, size: stored.content.length, serial: `serial of ${known.name}` };
}
