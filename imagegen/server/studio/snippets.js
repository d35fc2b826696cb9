// A job as a program: what to run elsewhere for the same image.

import { key } from "./api.js";

const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const address = (route) => new URL(route, location.href.replace(/[#?].*/, "")).href;

/** Base64 of a blob, without a data: prefix. */
export function base64(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

/** The fields of a request, with the references and the mask as base64. */
export async function withImages(fields, references, mask) {
  const all = { ...fields };
  if (references.length) all.images = await Promise.all(references.map((one) => base64(one.blob)));
  if (mask) all.mask = await base64(mask);
  return all;
}

/** What a form calls a file: its own name where it has one that a shell and a disk take. */
const filesOf = (entry) => entry.references.map((one, i) => one.name.replace(/[^\w.-]+/g, "_") || `image-${i + 1}.png`);

/** curl, which sends the references as files from the current folder. */
export function curl(entry, fields) {
  const { mode, ...body } = fields;
  const start = `curl -s ${quote(address(mode))}${key.get() ? ' -H "Authorization: Bearer $IMAGEGEN_API_KEY"' : ""}`;
  if (!entry.references.length) {
    return `${start} -H 'Content-Type: application/json' \\\n  -d ${quote(JSON.stringify(body))}`;
  }
  const text = (value) => (typeof value === "object" ? JSON.stringify(value) : String(value));
  const parts = Object.entries(body).map(([name, value]) => `--form-string ${quote(`${name}=${text(value)}`)}`);
  const files = filesOf(entry).map((name) => `-F ${quote(`images=@${name}`)}`);
  return [start, ...parts, ...files, ...(entry.mask ? ["-F 'mask=@mask.png'"] : [])].join(" \\\n  ");
}

/** Python with nothing but its standard library. */
export function python(entry, fields) {
  const { mode, ...body } = fields;
  const lines = Object.entries(body).map(([name, value]) => `    "${name}": ${pythonValue(value)},`);
  const read = (name) => `base64.b64encode(open(${JSON.stringify(name)}, "rb").read()).decode()`;
  if (entry.references.length) lines.push(`    "images": [${filesOf(entry).map(read).join(", ")}],`);
  if (entry.mask) lines.push(`    "mask": ${read("mask.png")},`);
  const auth = key.get() ? ', "Authorization": "Bearer " + os.environ["IMAGEGEN_API_KEY"]' : "";
  return `import base64
import json
${auth ? "import os\n" : ""}import urllib.request

job = {
${lines.join("\n")}
}
request = urllib.request.Request(
    ${JSON.stringify(address(mode))},
    data=json.dumps(job).encode(),
    headers={"Content-Type": "application/json"${auth}},
)
with urllib.request.urlopen(request) as response:
    answer = json.load(response)
for seed, image in zip(answer["seeds"], answer["images"]):
    with open(f"{answer['model']}-{seed}.{answer['output_format']}", "wb") as file:
        file.write(base64.b64decode(image))
`;
}

const PYTHON = { true: "True", false: "False", null: "None" };

/** A value as Python writes it; strings are JSON's, which Python reads as well. */
function pythonValue(value) {
  if (Array.isArray(value)) return `[${value.map(pythonValue).join(", ")}]`;
  if (value && typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, one]) => `${JSON.stringify(name)}: ${pythonValue(one)}`)
      .join(", ")}}`;
  }
  return typeof value === "string" ? JSON.stringify(value) : (PYTHON[value] ?? JSON.stringify(value));
}

/** JavaScript for Node, as a module. */
export function javascript(entry, fields) {
  const { mode, ...body } = fields;
  const lines = Object.entries(body).map(([name, value]) => `  ${name}: ${JSON.stringify(value)},`);
  const read = (name) => `(await readFile(${JSON.stringify(name)})).toString("base64")`;
  if (entry.references.length) lines.push(`  images: [${filesOf(entry).map(read).join(", ")}],`);
  if (entry.mask) lines.push(`  mask: ${read("mask.png")},`);
  const auth = key.get() ? ", Authorization: `Bearer ${process.env.IMAGEGEN_API_KEY}`" : "";
  return `import { ${entry.references.length ? "readFile, " : ""}writeFile } from "node:fs/promises";

const job = {
${lines.join("\n")}
};
const response = await fetch(${JSON.stringify(address(mode))}, {
  method: "POST",
  headers: { "Content-Type": "application/json"${auth} },
  body: JSON.stringify(job),
});
const answer = await response.json();
if (!response.ok) throw new Error(answer.error.message);
for (const [i, image] of answer.images.entries()) {
  await writeFile(\`\${answer.model}-\${answer.seeds[i]}.\${answer.output_format}\`, Buffer.from(image, "base64"));
}
`;
}

/** The body of a call of RunPod's /run, whole. */
export async function runpod(entry, fields) {
  return JSON.stringify({ input: await withImages(fields, entry.references, entry.mask) }, null, 2);
}
