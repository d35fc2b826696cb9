// A link that opens the page with these settings. They are in the fragment, which no browser sends to a server.

const TEXTS = ["prompt", "negative_prompt", "aspect_ratio", "output_format"];
const NUMBERS = ["width", "height", "num_images", "num_inference_steps", "guidance_scale", "seed", "output_quality"];

export function linkTo(fields) {
  const known = [...TEXTS, ...NUMBERS].filter((name) => fields[name] !== undefined);
  const query = new URLSearchParams(known.map((name) => [name, fields[name]]));
  // An adapter by its address is left out: the link would carry where somebody keeps it.
  for (const { name, scale } of fields.loras ?? []) if (name) query.append("lora", `${scale ?? 1}:${name}`);
  return `${location.href.replace(/#.*/, "")}#${query}`;
}

/** The settings of the address, null without any. What is unknown is left out: a link may be anybody's. */
export function fromLink() {
  const query = new URLSearchParams(location.hash.slice(1));
  const fields = {};
  for (const name of TEXTS) if (query.get(name)) fields[name] = query.get(name);
  for (const name of NUMBERS) {
    if (query.get(name) && Number.isFinite(Number(query.get(name)))) fields[name] = Number(query.get(name));
  }
  const loras = query.getAll("lora").map((text) => /^([-+.\d]+):(.+)$/.exec(text));
  if (loras.length) fields.loras = loras.filter(Boolean).map(([, scale, name]) => ({ name, scale: Number(scale) }));
  return Object.keys(fields).length ? fields : null;
}
