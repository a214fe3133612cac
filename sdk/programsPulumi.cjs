const { createRequire } = require("node:module");
const { join } = require("node:path");

// a linked checkout has an SDK of its own beside the program's, and Pulumi works only where both use the same copy
module.exports = isLinked(__dirname) ? fromProgram() : require("@pulumi/pulumi");

function isLinked(directory) {
  return !/[\\/]node_modules[\\/]/.test(directory);
}

function fromProgram() {
  try {
    return createRequire(join(process.cwd(), "program.js"))("@pulumi/pulumi");
  } catch {
    return require("@pulumi/pulumi");
  }
}
