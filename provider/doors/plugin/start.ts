import { closeSync, fsyncSync, mkdirSync, openSync, readdirSync, readFileSync, renameSync, rmSync, statSync, writevSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { cachedDataVersionTag, getHeapCodeStatistics, getHeapSpaceStatistics, setFlagsFromString } from "node:v8";
import { Script } from "node:vm";
import { crc32 } from "node:zlib";
import { cacheFolder } from "../../local/cacheFolder.ts";

// Runs the plugin with what Node.js compiled of it in earlier runs. Node.js's own cache does not have most of that: it keeps what is
// compiled while a file is loaded, and a function is compiled when it is called first.

/** CRC-32 of the source and of the compiled code, and how many bytes the process had compiled that wrote it. */
const headerBytes = 12;
const keptMillis = 30 * 24 * 3_600_000;
/** What runs of one kind differ by. */
const noteworthyBytes = 64 * 1024;
/** Two halves of 16 MiB, of at most 64 that newer versions allow. */
const youngBytes = 32 * 1024 ** 2;
const lookMillis = 100;
const ownSettings = ["--semi-space-growth-factor=2", "--heap-growing-percent=0", "--flush-bytecode"];
const plugin = join(import.meta.dirname, "plugin.js");
const source = readFileSync(plugin);
const sourceCrc = crc32(source);
const folder = join(cacheFolder(), "compiled");
// code is of use to the same version, flags and processor only
const path = join(folder, `plugin-${cachedDataVersionTag()}`);

const kept = read();
const parameters = "exports, require, module, __filename, __dirname";
// the bundler writes ASCII, and any other character in comments only
const text = source.toString("latin1");
const script = new Script(`(function (${parameters}) { ${text}\n})`, { filename: plugin, cachedData: kept?.code });
const keptBytes = kept === undefined || script.cachedDataRejected ? 0 : kept.bytes;
const module = { exports: {} };
script.runInThisContext().call(module.exports, module.exports, createRequire(plugin), module, plugin, import.meta.dirname);

// Only now: with other settings than V8's own, compiled code is refused, also that of Node.js's own modules. Memory is given back
// rather than more of the old waited for; code that was not used lately is kept, as it would be missing in what is written at the end.
setFlagsFromString("--heap-growing-percent=40");
setFlagsFromString("--no-flush-bytecode");
if (boundYoung() > 1) {
  const growing = setInterval(() => {
    if (boundYoung() === 1) clearInterval(growing);
  }, lookMillis);
  growing.unref();
}

process.on("exit", () => {
  const bytes = getHeapCodeStatistics().bytecode_and_metadata_size;
  if (bytes < keptBytes + noteworthyBytes) return;
  try {
    for (const own of ownSettings) setFlagsFromString(own);
    write(bytes, script.createCachedData());
  } catch {
    // a home that cannot be written, or a full disk: the next run compiles what it needs, as this one did
  }
});

/** Young garbage gets all its room at once when it needs more than it has, and never more; returns by how much it may still grow. */
function boundYoung(): number {
  const young = getHeapSpaceStatistics().find(({ space_name }) => space_name === "new_space");
  const factor = Math.max(1, Math.floor(youngBytes / Math.max(1, young?.space_size ?? youngBytes)));
  setFlagsFromString(`--semi-space-growth-factor=${factor}`);
  return factor;
}

function read(): { bytes: number; code: Buffer } | undefined {
  try {
    const file = readFileSync(path);
    const code = file.subarray(headerBytes);
    if (file.readUInt32LE(0) !== sourceCrc || file.readUInt32LE(4) !== crc32(code)) return undefined;
    return { bytes: file.readUInt32LE(8), code };
  } catch {
    return undefined;
  }
}

function write(bytes: number, code: Buffer): void {
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  for (const name of readdirSync(folder)) {
    const other = join(folder, name);
    if (Date.now() - statSync(other).mtimeMs > keptMillis) rmSync(other, { recursive: true, force: true });
  }
  const header = Buffer.alloc(headerBytes);
  for (const [index, value] of [sourceCrc, crc32(code), bytes].entries()) header.writeUInt32LE(value, 4 * index);
  const temporary = `${path}.${process.pid}`;
  try {
    const file = openSync(temporary, "w", 0o600);
    try {
      writevSync(file, [header, code]);
      fsyncSync(file);
    } finally {
      closeSync(file);
    }
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw error;
  }
}
