import type { Layer } from "../types.ts";
import type { BlockNode } from "./commandLine.ts";
import { diskInfo } from "./disks.ts";

// names of block nodes, the same in QEMU and in the daemon that shows the memory
const layerNode = "layer";
const arriving = "arriving";
const arrived = "arrived";
const below = "below";

type Arriving = Extract<Layer, { nbd: string }>;

export function isArriving(layer: Layer): layer is Arriving {
  return "nbd" in layer;
}

/** A layer's block nodes in the order in which they are opened; the last one is the layer itself. */
export async function layerNodes(layer: Layer): Promise<BlockNode[]> {
  if (!isArriving(layer)) return [localLayer(layer.file)];
  return [
    ...(layer.below === undefined ? [] : [await belowNode(layer.below)]),
    {
      driver: "nbd",
      "node-name": arriving,
      "read-only": true,
      server: { type: "unix", path: layer.nbd },
      export: layer.exportName,
      // requests wait that long for a server that is started anew, and then go on
      "reconnect-delay": waitSeconds,
    },
    // opened from the start: later its path is closed to a process that has become another user
    { driver: "file", "node-name": arrived, "read-only": true, filename: layer.file },
    layerOver(arriving, layer.below),
  ];
}

/** Commands after which an arriving layer is read from its file alone. Run again, or where nothing was arriving, there are none. */
export function settleCommands(nodes: string[]): { command: string; args: Record<string, unknown> }[] {
  if (!nodes.includes(arriving)) return [];
  const options = [layerOver(arrived, nodes.includes(below) ? below : undefined)];
  return [
    { command: "blockdev-reopen", args: { options } },
    { command: "blockdev-del", args: { "node-name": arriving } },
  ];
}

// the agent ends a guest whose source stays silent long before
const waitSeconds = 7 * 24 * 3600;

/** What it stands on is in its own header. */
function localLayer(file: string): BlockNode {
  return { driver: "qcow2", "node-name": layerNode, "read-only": true, file: { driver: "file", filename: file } };
}

function layerOver(file: string, standsOn: string | undefined): BlockNode {
  // null: whatever the header says, there is nothing below
  const backing = standsOn === undefined ? null : below;
  return { driver: "qcow2", "node-name": layerNode, "read-only": true, file, backing };
}

async function belowNode(path: string): Promise<BlockNode> {
  const { format } = await diskInfo(path);
  return { driver: format, "node-name": below, "read-only": true, file: { driver: "file", filename: path } };
}
