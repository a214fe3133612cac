import { z } from "zod";
import type { TarEntry } from "../../archive/tar.ts";
import type { LxdInstance } from "./client.ts";

/** One range of ids, as LXD notes it: `Nsid` inside the container is `Hostid` on the host. */
const rangeSchema = z.object({ Isuid: z.boolean(), Isgid: z.boolean(), Hostid: z.int(), Nsid: z.int(), Maprange: z.int() });
export type IdMap = z.infer<typeof rangeSchema>[];

/** How the owners on a container's disk are shifted; none until its first start, and where the kernel shifts mounts. */
export function diskMap(instance: Pick<LxdInstance, "config">): IdMap {
  const text = instance.config["volatile.last_state.idmap"] ?? "";
  return z.array(rangeSchema).parse(JSON.parse(text === "" ? "[]" : text));
}

/** A file of a container's disk as the container sees it: owners, and those that access lists and capabilities name. */
export function insideOf(map: IdMap): (entry: TarEntry) => TarEntry {
  const uid = (id: number): number => shift(map, id, (range) => range.Isuid);
  const gid = (id: number): number => shift(map, id, (range) => range.Isgid);
  return (entry) => {
    const xattrs = Object.entries(entry.xattrs).map(([name, value]) => {
      if (name === "security.capability") return [name, capability(value, uid)];
      return [name, name.startsWith("system.posix_acl_") ? accessList(value, { uid, gid }) : value];
    });
    return { ...entry, uid: uid(entry.uid), gid: gid(entry.gid), xattrs: Object.fromEntries(xattrs) as Record<string, string> };
  };
}

function shift(map: IdMap, id: number, applies: (range: IdMap[number]) => boolean): number {
  const range = map.find((each) => applies(each) && id >= each.Hostid && id < each.Hostid + each.Maprange);
  return range === undefined ? id : id - range.Hostid + range.Nsid;
}

/** Version 3 of the form ends with the root that the capabilities are for; for the container's own root it is version 2. */
function capability(value: string, uid: (id: number) => number): string {
  const bytes = Buffer.from(value, "latin1");
  if (bytes.length !== 24 || bytes.readUInt8(3) !== 3) return value;
  const root = uid(bytes.readUInt32LE(20));
  if (root !== 0) bytes.writeUInt32LE(root, 20);
  else bytes.writeUInt8(2, 3);
  return bytes.toString("latin1", 0, root === 0 ? 20 : 24);
}

const namedUser = 0x02;
const namedGroup = 0x08;

/** A version, then eight bytes per line: whom it is for, what it allows, and the id where it names one. */
function accessList(value: string, { uid, gid }: { uid(id: number): number; gid(id: number): number }): string {
  const bytes = Buffer.from(value, "latin1");
  for (let at = 4; at + 8 <= bytes.length; at += 8) {
    const tag = bytes.readUInt16LE(at);
    if (tag === namedUser) bytes.writeUInt32LE(uid(bytes.readUInt32LE(at + 4)), at + 4);
    if (tag === namedGroup) bytes.writeUInt32LE(gid(bytes.readUInt32LE(at + 4)), at + 4);
  }
  return bytes.toString("latin1");
}
