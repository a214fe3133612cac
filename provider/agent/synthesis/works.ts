import type { Offer } from "../protocol.ts";
import type { ArrivingOptions } from "../../synthesis/arrivingLayer.ts";
import type { Manifest } from "../../synthesis/manifest.ts";
import type { OverlayIndex, OverlayPaths } from "../../synthesis/overlay.ts";
import type { ReorderInput } from "../../synthesis/reorder.ts";
import type { Progress, Sealed, SealInput, Touch } from "../../synthesis/sealTypes.ts";

/** What a hydrator is told: which layer arrives, over what, and who has it. */
export interface HydratorTask extends Omit<ArrivingOptions, "directory"> {
  /** None: those that it was given before. */
  offers: readonly Offer[];
  /** Where it serves the layer's images, and where it says how far it is. */
  socket: string;
  statusFile: string;
  /** File in which the order of first reads is written down, where all chunks are here already. */
  record?: string;
}

export interface Hydration {
  /** Bytes of the pack that are here, in all, and that came over the network. */
  present: number;
  total: number;
  transferred: number;
  state: "coming" | "waiting" | "complete" | "failed";
  reason: string;
  /** Whether device state and seed are here, without which no guest can be resumed. */
  startable: boolean;
}

/** Work on layers and images: real programs and processes on a node, fakes in unit tests. */
export interface Works {
  readOverlay(paths: OverlayPaths): Promise<OverlayIndex>;
  materialise(options: ArrivingOptions & { pack: string }, progress: Progress): Promise<void>;
  /** Compares the recombined images with the digests in the manifest; returns the bytes compared. */
  verifyLayer(directory: string, manifest: Manifest, progress: Progress): Promise<number>;
  seal(input: SealInput, progress: Progress): Promise<Sealed>;
  reorder(input: ReorderInput, progress: Progress): Promise<Sealed>;
  /** Shows an image, with everything that it stands on, as one raw file for as long as `work` lasts. */
  withRawView<T>(image: { file: string; format: string }, signal: AbortSignal, work: (rawPath: string) => Promise<T>): Promise<T>;
  imageFormat(file: string, signal: AbortSignal): Promise<string>;
  /** Starts the hydrator of a layer, or gives the running one these offers; returns once it serves. It outlives the agent. */
  startHydrator(directory: string, task: HydratorTask): Promise<void>;
  /** undefined where none runs. */
  hydration(directory: string): Promise<Hydration | undefined>;
  stopHydrator(directory: string): Promise<void>;
  touched(record: string): Promise<Touch[]>;
  /** How long a trial's guest is watched beyond its first answer: on a slow link other things become due before that. */
  readonly watchMillis: number;
}
