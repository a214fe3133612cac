import { join } from "node:path";
import { z } from "zod";
import { hydratorConfigSchema } from "../../synthesis/hydrate/config.ts";
import { hydratorStatus, startHydrator, stopHydrator } from "../../synthesis/hydrate/control.ts";
import { verifyImages } from "../../synthesis/imageDigest.ts";
import { imageNames, layerFiles } from "../../synthesis/layerFiles.ts";
import type { ImageName } from "../../synthesis/layerFiles.ts";
import { materialise } from "../../synthesis/materialise.ts";
import { readOverlay } from "../../synthesis/overlay.ts";
import { reorder } from "../../synthesis/reorder.ts";
import { seal } from "../../synthesis/seal.ts";
import { rawView } from "../drivers.ts";
import { readJson } from "../durable.ts";
import { run } from "../process.ts";
import type { Works } from "./works.ts";

const infoSchema = z.object({ format: z.string() });
const touchesSchema = z.array(z.object({ image: z.enum(["disk", "memory"]), block: z.int() }));

/** The real programs and processes. */
export const works: Works = {
  readOverlay,
  materialise,
  seal,
  reorder,
  withRawView: rawView,
  async imageFormat(file, signal) {
    const { stdout } = await run(["qemu-img", "info", "--force-share", "--output=json", file], { timeoutMillis: 30_000, signal });
    return infoSchema.parse(JSON.parse(stdout)).format;
  },
  async verifyLayer(directory, manifest, progress) {
    const files = layerFiles(directory);
    const show = async (names: readonly ImageName[], shown: Partial<Record<ImageName, string>>): Promise<void> => {
      const [name, ...rest] = names;
      if (name === undefined) return verifyImages(manifest, shown, progress);
      return rawView({ file: files[name], format: "qcow2" }, progress.signal, (raw) => show(rest, { ...shown, [name]: raw }));
    };
    const names = imageNames.filter((name) => manifest[name] !== undefined);
    await show(names, {});
    return names.reduce((sum, name) => sum + (manifest[name]?.virtualBytes ?? 0), 0);
  },
  async startHydrator(directory, task) {
    const before = await readJson(join(directory, "hydrate.json"), hydratorConfigSchema).catch(() => undefined);
    const offers = task.offers.length > 0 ? [...task.offers] : (before?.offers ?? []);
    await startHydrator(directory, { layer: directory, ...task, offers });
  },
  async hydration(directory) {
    const status = await hydratorStatus(directory);
    return status?.running === true ? { ...status, startable: status.whole.files } : undefined;
  },
  stopHydrator,
  async touched(record) {
    return (await readJson(record, touchesSchema)) ?? [];
  },
  watchMillis: 3_000,
};
