import { blockBytes, typeFlags, type TarEntry } from "./tar.ts";

/** Header blocks of an entry: ustar, with a pax header only where ustar cannot say it. The same entry gives the same bytes. */
export function headerOf(entry: TarEntry): Buffer {
  const records = paxRecords(entry);
  const header = block(entry, typeFlags[entry.type]);
  if (records.length === 0) return header;
  const pax = { ...entry, path: "././@PaxHeader", target: "", mode: 0o644, uid: 0, gid: 0, mtime: 0, major: 0, minor: 0 };
  return Buffer.concat([block({ ...pax, size: records.length }, "x"), records, paddingOf(records.length), header]);
}

/** What fills up the last block of a file. */
export function paddingOf(size: number): Buffer {
  return Buffer.alloc((blockBytes - (size % blockBytes)) % blockBytes);
}

export function endOfTar(): Buffer {
  return Buffer.alloc(2 * blockBytes);
}

const octal7 = 0o7777777;
const octal11 = 0o77777777777;

function paxRecords(entry: TarEntry): Buffer {
  const records: [string, string][] = [];
  const add = (key: string, value: string | number): void => void records.push([key, String(value)]);
  if (nameOf(entry).length > 100) add("path", nameOf(entry));
  if (entry.target.length > 100) add("linkpath", entry.target);
  if (entry.size > octal11) add("size", entry.size);
  if (entry.uid > octal7) add("uid", entry.uid);
  if (entry.gid > octal7) add("gid", entry.gid);
  if (entry.mtime < 0 || entry.mtime > octal11) add("mtime", entry.mtime);
  for (const [name, value] of Object.entries(entry.xattrs).sort(([a], [b]) => (a < b ? -1 : 1))) add(`SCHILY.xattr.${name}`, value);
  return Buffer.concat(records.map(([key, value]) => record(key, value)));
}

/** A record begins with its own length, digits included. */
function record(key: string, value: string): Buffer {
  const rest = ` ${key}=${value}\n`;
  let length = rest.length + 1;
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length;
  return Buffer.from(`${String(length)}${rest}`, "latin1");
}

function nameOf(entry: TarEntry): string {
  return entry.type === "directory" && !entry.path.endsWith("/") ? `${entry.path}/` : entry.path;
}

function block(entry: TarEntry, flag: string): Buffer {
  const header = Buffer.alloc(blockBytes);
  const put = (text: string, at: number, length: number): void => void header.write(text.slice(0, length), at, "latin1");
  const number = (value: number, at: number, digits: number): void => {
    const most = 8 ** digits - 1;
    put(Math.min(Math.max(0, value), most).toString(8).padStart(digits, "0"), at, digits);
  };
  put(flag === "x" ? entry.path : nameOf(entry), 0, 100);
  number(entry.mode, 100, 7);
  number(entry.uid, 108, 7);
  number(entry.gid, 116, 7);
  number(entry.size, 124, 11);
  number(entry.mtime, 136, 11);
  put(flag, 156, 1);
  put(entry.target, 157, 100);
  put("ustar\u000000", 257, 8);
  number(entry.major, 329, 7);
  number(entry.minor, 337, 7);
  put("        ", 148, 8);
  number(
    header.reduce((sum, byte) => sum + byte, 0),
    148,
    6,
  );
  header[154] = 0;
  return header;
}
