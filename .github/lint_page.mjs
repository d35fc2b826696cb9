// Checks the page's files with npm's eslint and prettier: node lint_page.mjs PREFIX [--write] FOLDER...
import { readFileSync, readdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join, resolve } from "node:path";

const [prefix, ...rest] = process.argv.slice(2);
const write = rest[0] === "--write";
const files = (write ? rest.slice(1) : rest).flatMap((folder) =>
  readdirSync(folder, { recursive: true }).map((name) => join(folder, name)),
);

const load = createRequire(resolve(prefix, "package.json"));
const { ESLint } = load("eslint");
const parsed = ["innerHTML", "outerHTML", "insertAdjacentHTML"].map((property) => ({
  property,
  message: "An element is made, and never parsed from a string.",
}));
const eslint = new ESLint({
  cwd: resolve("."),
  overrideConfigFile: true,
  fix: write,
  overrideConfig: [
    load("@eslint/js").configs.recommended,
    {
      languageOptions: { globals: load("globals").browser },
      linterOptions: { reportUnusedDisableDirectives: "error" },
      rules: {
        complexity: ["error", 15],
        eqeqeq: "error",
        "max-lines": ["error", 350],
        "no-implied-eval": "error",
        "no-restricted-properties": ["error", ...parsed],
        "no-shadow": "error",
        "no-var": "error",
        "prefer-const": "error",
        "prefer-template": "error",
      },
    },
  ],
});
const results = await eslint.lintFiles(files.filter((file) => /\.m?js$/.test(file)));
if (write) await ESLint.outputFixes(results);
const faults = results.flatMap(({ filePath, messages }) =>
  messages.map(({ line, column, message, ruleId }) => `${filePath}:${line}:${column}: ${message} [${ruleId}]`),
);

const prettier = load("prettier");
for (const file of files.filter((name) => /\.(m?js|css|html)$/.test(name))) {
  const text = readFileSync(file, "utf8");
  const formatted = await prettier.format(text, { filepath: file, printWidth: 120 });
  if (formatted === text) continue;
  if (write) writeFileSync(file, formatted);
  else faults.push(`${file}: is not formatted as \`make format\` would`);
}

for (const fault of faults) console.error(fault);
process.exit(faults.length ? 1 : 0);
