import type { FileName, ImageName } from "./layerFiles.ts";
import type { Manifest } from "./manifest.ts";

/** A whole image, and what it is to be told apart from. */
export interface SealImage {
  /** The image, readable as raw bytes. */
  current: string;
  /** What lies below it, readable as raw bytes; absent = zeros. Shorter than the image, it goes on with zeros. */
  below?: string | undefined;
  virtualBytes: number;
  /** Nothing outside of these differs from `below`. Absent = it is not known. */
  changed?: { offset: number; length: number }[] | undefined;
}

/** A block of an image that was read before the first answer. */
export interface Touch {
  image: ImageName;
  block: number;
}

export interface SealInput extends Pick<Manifest, "kind" | "base" | "parent" | "diskMib" | "machine" | "network" | "ready"> {
  /** Where the blobs are written; whoever asked moves them away. */
  directory: string;
  disk?: SealImage | undefined;
  memory?: SealImage | undefined;
  files: { name: FileName; path: string }[];
  /** First touch first. Absent = not known yet: memory is then packed quickly, for a trial, and by `reorder` once it is known. */
  touched?: Touch[] | undefined;
}

export interface Sealed {
  /** The manifest's: the overlay's identity. */
  digest: string;
  manifest: Manifest;
  /** Manifest, index, pack. */
  blobs: { digest: string; path: string; bytes: number }[];
}

export interface Progress {
  signal: AbortSignal;
  status(text: string): void;
}
