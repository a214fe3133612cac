import { posix } from "node:path";
import type { Readable } from "node:stream";
import { text } from "node:stream/consumers";
import { z } from "zod";
import { CloudletError } from "../../core/errors.ts";
import type { Rest, RestResponse } from "../../transport/types.ts";
import { download, send, type LxdRequest } from "./client.ts";

/** The file system of one container, running, frozen or stopped, by LXD's files API. Ids are the container's. */
export interface Files {
  rest: Rest;
  guest: string;
  signal?: AbortSignal | undefined;
}

export interface Attributes {
  uid: number;
  gid: number;
  /** Permission bits. */
  mode: number;
}

export type Found = Attributes & { modified: Date } & (
    { type: "directory"; names: string[] } | { type: "symlink"; target: string } | { type: "file"; bytes: number; content: Readable }
  );

/** What is at a path; undefined = nothing. A file's content must be read or destroyed. */
export async function readPath(files: Files, path: string): Promise<Found | undefined> {
  const response = await orMissing(download(files.rest, request(files, "GET", path)));
  if (response === undefined) return undefined;
  const common = { ...attributesOf(response), modified: new Date(response.headers["last-modified"] ?? response.headers.date ?? 0) };
  switch (response.headers["x-lxd-type"]) {
    case "directory":
      return { ...common, type: "directory", names: listing.parse(JSON.parse(await text(response.body))).metadata ?? [] };
    case "symlink":
      // trap: LXD answers with the resolved, absolute target
      return { ...common, type: "symlink", target: await text(response.body) };
    default:
      return { ...common, type: "file", bytes: Number(response.headers["content-length"] ?? 0), content: response.body };
  }
}

export async function writeFile(files: Files, path: string, file: Attributes & { content: Buffer | Readable }): Promise<void> {
  // trap: LXD keeps owner and mode of a file that is there
  const present = await stat(files, path);
  if (
    present !== undefined &&
    (present.type !== "file" || present.uid !== file.uid || present.gid !== file.gid || present.mode !== file.mode)
  )
    await removeTree(files, path);
  const headers = { "content-type": "application/octet-stream", "x-lxd-type": "file", "x-lxd-write": "overwrite", ...owned(file) };
  await send(files.rest, { ...request(files, "POST", path), headers, body: file.content });
}

export async function makeDirectory(files: Files, path: string, attributes: Attributes): Promise<void> {
  const present = await stat(files, path);
  if (present?.type === "directory") return;
  if (present !== undefined) await removeTree(files, path);
  await send(files.rest, { ...request(files, "POST", path), headers: { "x-lxd-type": "directory", ...owned(attributes) } });
}

/** Directories above a path, as root's with mode 0755 where they are missing. */
export async function makeParents(files: Files, path: string): Promise<void> {
  const parent = posix.dirname(path);
  if (parent === "/" || parent === ".") return;
  if ((await stat(files, parent)) !== undefined) return;
  await makeParents(files, parent);
  await makeDirectory(files, parent, { uid: 0, gid: 0, mode: 0o755 });
}

export async function makeSymlink(files: Files, path: string, target: string): Promise<void> {
  await removeTree(files, path);
  await send(files.rest, { ...request(files, "POST", path), headers: { "x-lxd-type": "symlink" }, body: Buffer.from(target) });
}

/** Removes a file or a directory with all that is in it; missing is fine. */
export async function removeTree(files: Files, path: string): Promise<void> {
  const present = await stat(files, path);
  if (present === undefined) return;
  if (present.type === "directory") {
    const found = await readPath(files, path);
    if (found?.type === "directory") for (const name of found.names) await removeTree(files, posix.join(path, name));
  }
  await orMissing(send(files.rest, request(files, "DELETE", path)));
}

/** The last bytes of a file as text; missing and empty are the same. */
export async function readTail(files: Files, path: string, bytes: number): Promise<string> {
  try {
    const wanted = { ...request(files, "GET", path), headers: { range: `bytes=-${String(bytes)}` } };
    const response = await download(files.rest, wanted);
    return await text(response.body);
  } catch (error) {
    // an empty file has no range: HTTP 416
    if (error instanceof CloudletError && (error.code === "NOT_FOUND" || error.message.includes("range"))) return "";
    throw error;
  }
}

const listing = z.object({ metadata: z.array(z.string()).nullish() });

async function stat(files: Files, path: string): Promise<(Attributes & { type: string }) | undefined> {
  const response = await orMissing(download(files.rest, request(files, "HEAD", path)));
  response?.body.resume();
  return response && { ...attributesOf(response), type: response.headers["x-lxd-type"] ?? "file" };
}

function request(files: Files, method: LxdRequest["method"], path: string): LxdRequest {
  const verb = { GET: "read", HEAD: "look at", DELETE: "remove", POST: "write", PUT: "write", PATCH: "write" }[method];
  return {
    method,
    path: `/1.0/instances/${files.guest}/files?path=${encodeURIComponent(path)}`,
    what: `${verb} ${path} in ${files.guest}`,
    signal: files.signal,
  };
}

function owned({ uid, gid, mode }: Attributes): Record<string, string> {
  return { "x-lxd-uid": String(uid), "x-lxd-gid": String(gid), "x-lxd-mode": `0${mode.toString(8)}` };
}

function attributesOf({ headers }: RestResponse): Attributes {
  return {
    uid: Number(headers["x-lxd-uid"] ?? 0),
    gid: Number(headers["x-lxd-gid"] ?? 0),
    mode: parseInt(headers["x-lxd-mode"] ?? "0", 8) & 0o7777,
  };
}

async function orMissing<T>(answer: Promise<T>): Promise<T | undefined> {
  try {
    return await answer;
  } catch (error) {
    if (error instanceof CloudletError && error.code === "NOT_FOUND") return undefined;
    throw error;
  }
}
