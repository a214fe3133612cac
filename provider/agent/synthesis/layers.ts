import { mkdir, readdir, readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { CloudletError, codeOf } from "../../core/errors.ts";
import type { Origin, Progress } from "../../hypervisors/types.ts";
import { layerFiles } from "../../synthesis/layerFiles.ts";
import type { ImageName, LayersBelow } from "../../synthesis/layerFiles.ts";
import { maxManifestBytes } from "../../synthesis/manifest.ts";
import type { Manifest } from "../../synthesis/manifest.ts";
import { parseManifest } from "../../synthesis/manifestCheck.ts";
import type { OverlayPaths } from "../../synthesis/overlay.ts";
import { exists } from "../durable.ts";
import type { KeyedLock } from "../keyedLock.ts";
import type { Offer } from "../protocol.ts";
import type { Store } from "../store.ts";
import type { Hydration, Works } from "./works.ts";

/** Which part of an overlay a blob is, for messages. */
type Part = "manifest" | "index" | "pack" | "base";

const statusName = "hydrate.status.json";
const hydratorFiles = ["hydrate.json", "hydrate.log", statusName, "nbd.sock"];
const socketOf = (directory: string): string => join(directory, "nbd.sock");

/** Overlays recombined on this node, each in a directory of its own under the overlay's digest. */
export class Layers {
  readonly #parts: { root: string; store: Store; lock: KeyedLock; works: Works };

  constructor(parts: { root: string; store: Store; lock: KeyedLock; works: Works }) {
    this.#parts = parts;
  }

  directoryOf(digest: string): string {
    return join(this.#parts.root, "layers", digest);
  }

  /** The overlay's manifest, checked; its other parts may not be here yet. */
  async manifest(digest: string): Promise<Manifest> {
    const file = await this.#path("manifest", digest, digest);
    if ((await this.#parts.store.bytes(digest)) > maxManifestBytes)
      throw new CloudletError("INTEGRITY", `the manifest of overlay ${digest.slice(0, 12)} is larger than any manifest`);
    return parseManifest(await readFile(file, "utf8"));
  }

  /** The same, checked together with its index. */
  async read(digest: string): Promise<Manifest> {
    return (await this.#parts.works.readOverlay(await this.paths(digest))).manifest;
  }

  /** Path of a base image, verified. */
  base(digest: string): Promise<string> {
    return this.#path("base", "", digest);
  }

  /** Each of its blobs is here and has its digest; the message names the part that has not. */
  async requireAll(digest: string): Promise<void> {
    const manifest = await this.read(digest);
    await this.#path("pack", digest, manifest.pack.digest);
    if (manifest.parent !== undefined) await this.requireAll(manifest.parent);
  }

  isWhole(digest: string): Promise<boolean> {
    return exists(layerFiles(this.directoryOf(digest)).manifest);
  }

  /** Recombines an overlay whose blobs are in the store; one that is there already stays as it is. */
  async make(digest: string, progress: Progress): Promise<void> {
    await this.#inTurn(digest, async () => {
      if (await this.isWhole(digest)) return;
      const { store, works } = this.#parts;
      const { paths, manifest, ...under } = await this.#open(digest, progress);
      const pack = await this.#path("pack", digest, manifest.pack.digest);
      await store.requireSpace(rawBytes(manifest));
      progress.status(`recombining overlay ${digest.slice(0, 12)}`);
      const directory = await this.#directory(digest);
      try {
        await works.materialise({ ...paths, directory, ...under, pack }, progress);
      } catch (error) {
        // a damaged one is of no use to the next attempt
        if (codeOf(error) === "INTEGRITY") await this.#forget(digest);
        throw error;
      }
    });
  }

  /** Has an overlay arrive from those who offer it; what stands on it reads from the socket until it is whole. */
  async arrive(digest: string, offers: readonly Offer[], progress: Progress): Promise<void> {
    await this.#inTurn(digest, async () => {
      if (await this.isWhole(digest)) return;
      const manifest = await this.manifest(digest);
      await this.#parts.store.requireSpace(rawBytes(manifest) + manifest.pack.bytes);
      await this.#hydrate(digest, offers, progress);
    });
  }

  /** Serves a layer, whole or not, to guests that read it from the socket; from those who offered it before. */
  async serve(digest: string, progress: Progress): Promise<void> {
    await this.#inTurn(digest, () => this.#hydrate(digest, [], progress));
  }

  hydration(digest: string): Promise<Hydration | undefined> {
    return this.#parts.works.hydration(this.directoryOf(digest));
  }

  /** What a guest is resumed from: the layer's files, or the socket where they are still arriving. */
  async origin(digest: string, progress: Progress): Promise<Origin> {
    const manifest = await this.manifest(digest);
    const { machine, network } = manifest;
    if (machine === undefined || network === undefined)
      throw new CloudletError("BUG", `overlay ${digest.slice(0, 12)} holds no memory to resume from`);
    const files = layerFiles(this.directoryOf(digest));
    const own = { state: files.state, seed: files.seed, machine, network };
    if (await this.isWhole(digest)) return { ...own, disk: { file: files.disk }, memory: { file: files.memory } };
    const below = await this.#below(manifest, progress);
    return { ...own, ...served(this.directoryOf(digest), below) };
  }

  /** A whole layer, served so that the order of first reads is written down. */
  async recording(digest: string, record: string, progress: Progress): Promise<Origin> {
    const whole = await this.origin(digest, progress);
    const { paths, below, parent } = await this.#open(digest, progress);
    const directory = this.directoryOf(digest);
    const [socket, statusFile] = [socketOf(directory), join(directory, statusName)];
    await this.#parts.works.startHydrator(directory, { ...paths, below, parent, offers: [], socket, statusFile, record });
    return { ...whole, ...served(directory, below) };
  }

  async endRecording(digest: string): Promise<void> {
    await this.#endHydrator(this.directoryOf(digest));
  }

  /** Nothing reads from the hydrator any more: it ends, and the pack that it has gathered is the store's. */
  async settle(digest: string): Promise<void> {
    await this.#inTurn(digest, async () => {
      const directory = this.directoryOf(digest);
      await this.#endHydrator(directory);
      const { pack } = layerFiles(directory);
      if (!(await this.isWhole(digest)) || !(await exists(pack))) return;
      const manifest = await this.read(digest);
      await this.#parts.store.adopt(manifest.pack.digest, pack);
    });
  }

  async verify(digest: string, progress: Progress): Promise<number> {
    await this.make(digest, progress);
    const manifest = await this.read(digest);
    return this.#parts.works.verifyLayer(this.directoryOf(digest), manifest, progress);
  }

  async remove(digest: string): Promise<void> {
    await this.#inTurn(digest, () => this.#forget(digest));
  }

  /** Ends and removes every layer that nothing stands on. */
  async collect(references: ReadonlySet<string>): Promise<string[]> {
    const loose = (await this.list()).filter((digest) => !references.has(digest));
    for (const digest of loose) await this.remove(digest);
    return loose;
  }

  list(): Promise<string[]> {
    return readdir(join(this.#parts.root, "layers")).catch(() => []);
  }

  async #hydrate(digest: string, offers: readonly Offer[], progress: Progress): Promise<void> {
    const { paths, below, parent } = await this.#open(digest, progress);
    const directory = await this.#directory(digest);
    const [socket, statusFile] = [socketOf(directory), join(directory, statusName)];
    await this.#parts.works.startHydrator(directory, { ...paths, below, parent, offers, socket, statusFile });
  }

  async #endHydrator(directory: string): Promise<void> {
    await this.#parts.works.stopHydrator(directory);
    // its configuration holds tokens
    for (const name of hydratorFiles) await rm(join(directory, name), { force: true });
  }

  async #forget(digest: string): Promise<void> {
    await this.#parts.works.stopHydrator(this.directoryOf(digest));
    await rm(this.directoryOf(digest), { recursive: true, force: true });
  }

  /** What an overlay is recombined from, checked, and what it stands on. */
  async #open(
    digest: string,
    progress: Progress,
  ): Promise<{ paths: OverlayPaths; manifest: Manifest; below: LayersBelow; parent: string | undefined }> {
    const paths = await this.paths(digest);
    const { manifest } = await this.#parts.works.readOverlay(paths);
    const parent = manifest.parent === undefined ? undefined : this.directoryOf(manifest.parent);
    return { paths, manifest, below: await this.#below(manifest, progress), parent };
  }

  /** The images that it stands on, made first where they are an overlay themselves. */
  async #below(manifest: Manifest, progress: Progress): Promise<LayersBelow> {
    if (manifest.kind === "lxd") return {};
    if (manifest.parent !== undefined) {
      await this.make(manifest.parent, progress);
      const files = layerFiles(this.directoryOf(manifest.parent));
      return { disk: { file: files.disk, format: "qcow2" }, memory: { file: files.memory, format: "qcow2" } };
    }
    const file = await this.base(manifest.base);
    return { disk: { file, format: await this.#parts.works.imageFormat(file, progress.signal) } };
  }

  /** Where the overlay's manifest and index are. */
  async paths(digest: string): Promise<OverlayPaths> {
    const { index } = await this.manifest(digest);
    return { digest, manifest: await this.#path("manifest", digest, digest), index: await this.#path("index", digest, index.digest) };
  }

  /** A blob's verified path; where it is missing or damaged the message says which part of what it is. */
  async #path(part: Part, overlay: string, digest: string): Promise<string> {
    try {
      return await this.#parts.store.path(digest);
    } catch (error) {
      const code = codeOf(error);
      if (code !== "INTEGRITY" && code !== "NOT_FOUND") throw error;
      const what = part === "base" ? "the base image" : `the ${part} of overlay ${overlay.slice(0, 12)}`;
      throw new CloudletError(
        code,
        `${what} ${code === "NOT_FOUND" ? "is not on this node" : "is damaged"}: ${String((error as Error).message)}`,
        {
          cause: error,
          fix: "run `pulumi up` again: it is sent anew",
        },
      );
    }
  }

  async #directory(digest: string): Promise<string> {
    const directory = this.directoryOf(digest);
    // hypervisor processes of another user read the images in it
    await mkdir(directory, { recursive: true, mode: 0o755 });
    return directory;
  }

  #inTurn<T>(digest: string, work: () => Promise<T>): Promise<T> {
    return this.#parts.lock.run(`layer:${digest}`, work);
  }
}

/** Both images of a layer, as its hydrator serves them. */
function served(directory: string, below: LayersBelow): Pick<Origin, "disk" | "memory"> {
  const image = (exportName: ImageName) => {
    const { file } = below[exportName] ?? {};
    return { file: layerFiles(directory)[exportName], nbd: socketOf(directory), exportName, ...(file !== undefined && { below: file }) };
  };
  return { disk: image("disk"), memory: image("memory") };
}

/** What an overlay takes up once it is recombined. */
export function rawBytes({ pack }: Manifest): number {
  return pack.chunks.reduce((sum, chunk) => sum + chunk.rawBytes, 0);
}
