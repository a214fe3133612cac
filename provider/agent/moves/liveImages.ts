import type { CommonImages, Guest } from "../../hypervisors/types.ts";
import { layerFiles } from "../../synthesis/layerFiles.ts";
import type { InstanceRecord } from "../records.ts";
import type { Services } from "../services.ts";

/** What both nodes have of a cloudlet before it moves: its base, or its overlay recombined with it. */
export function commonImages(services: Services, { spec }: InstanceRecord, guest: Guest): CommonImages {
  const memory = spec.overlay === undefined ? undefined : layerFiles(services.layers.directoryOf(spec.overlay.digest)).memory;
  return { disk: guest.basePath, memory };
}
