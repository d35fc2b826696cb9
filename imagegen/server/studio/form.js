// The settings: what the server allows, what the caller chose, as the fields of a request, and errors beside them.

import { $, icon, node } from "./dom.js";
import { offerLoras, readLoras, writeLoras } from "./loras.js";
import { service } from "./service.js";
import { t } from "./text.js";

const NUMBERS = ["num_images", "num_inference_steps", "seed"];
/** Of models that are not distilled. */
const GUIDED = ["guidance_scale", "negative_prompt"];
const SIDES = ["width", "height"];
/** What a random seed is below, as the server's own. */
const SEEDS = 2 ** 32;

export const randomSeed = () => crypto.getRandomValues(new Uint32Array(1))[0] % SEEDS;

const shape = () => document.querySelector("[name=shape]:checked:enabled")?.value ?? "";

const narrow = matchMedia("(max-width: 760px)");

/** Whether canvas and settings are below each other. */
export const isNarrow = () => narrow.matches;

/** Fills in what this server can do; what was chosen stays, where it is still there. */
export function offer() {
  const { aspect_ratios, sizes, defaults, limits, output_formats } = service.capabilities;
  const chosen = shape();
  const format = $("output_format").value;
  const ratios = aspect_ratios.filter((ratio) => ratio.includes(":"));
  $("shapes").replaceChildren(...["", ...ratios, "custom"].map(shapeChoice));
  choose(chosen);
  for (const side of SIDES) Object.assign($(side), { min: sizes.min, max: sizes.good, placeholder: sizes.default });
  Object.assign($("num_inference_steps"), {
    max: limits.num_inference_steps,
    placeholder: defaults.num_inference_steps,
  });
  $("num_images").max = limits.num_images;
  $("guidance-field").hidden = defaults.guidance_scale <= 1;
  $("guidance_scale").placeholder = defaults.guidance_scale;
  $("output_format").replaceChildren(
    ...output_formats.map((name) => node("option", { value: name, textContent: name.toUpperCase() })),
  );
  if (output_formats.includes(format)) $("output_format").value = format;
  offerLoras();
  $("settings").classList.add("known");
}

function shapeChoice(value) {
  const input = node("input", { type: "radio", name: "shape", value, onchange: () => choose(value) });
  const [across, down] = (value.includes(":") ? value : "1:1").split(":").map(Number);
  const drawn = node("span", { className: "shape", "aria-hidden": "true" });
  const unit = 20 / Math.max(across, down);
  Object.assign(drawn.style, { width: `${across * unit}px`, height: `${down * unit}px` });
  if (!value.includes(":")) drawn.classList.add("open");
  const words = value === "" ? t("auto") : value === "custom" ? t("custom") : value;
  return node("label", { className: "choice" }, input, drawn, node("span", {}, words));
}

function choose(value) {
  const inputs = [...document.querySelectorAll("[name=shape]")];
  const input = inputs.find((one) => one.value === value) ?? inputs[0];
  if (input) input.checked = true;
  $("sides").hidden = input?.value !== "custom";
}

/** The fields of the settings that were changed from the server's own; a number that is none stays as it was typed. */
export function read() {
  const fields = { prompt: $("prompt").value };
  const chosen = shape();
  if (chosen.includes(":")) fields.aspect_ratio = chosen;
  const shown = [...(chosen === "custom" ? SIDES : []), ...NUMBERS, ...($("guidance-field").hidden ? [] : GUIDED)];
  for (const name of shown) {
    const text = $(name).value.trim();
    if (text) fields[name] = name === "negative_prompt" || Number.isNaN(Number(text)) ? text : Number(text);
  }
  if ($("output_format").value !== "png") {
    fields.output_format = $("output_format").value;
    fields.output_quality = Number($("output_quality").value);
  }
  return { ...fields, ...readLoras() };
}

/** What is wrong with a size that the model accepts and does badly, as an error of its field; null for others. */
export function badSize(fields) {
  const { model, sizes } = service.capabilities ?? {};
  const field = SIDES.find((side) => fields[side] > sizes?.good);
  return field ? { field, message: t("bad_size", { model, min: sizes.min, max: sizes.good }) } : null;
}

/** Takes settings up again, from the history or from a link. */
export function write(fields) {
  $("prompt").value = fields.prompt ?? "";
  choose(fields.width || fields.height ? "custom" : (fields.aspect_ratio ?? ""));
  for (const name of [...SIDES, ...NUMBERS, ...GUIDED])
    $(name).value = fields[name] ?? (name === "num_images" ? 1 : "");
  $("output_format").value = fields.output_format ?? "png";
  $("output_quality").value = fields.output_quality ?? 90;
  writeLoras(fields.loras);
  showLock();
  showQuality();
}

export function clearErrors() {
  for (const place of document.querySelectorAll("#form .error")) place.textContent = "";
  for (const field of document.querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
}

/** Shows an error beside its field, and moves the focus there. */
export function showError(error) {
  const name = (error.field ?? "").replace(/[[.].*/, "");
  const place = $(`${name}-error`) ?? $("error");
  place.textContent = error.message;
  if ($("settings").contains(place)) unfold(true);
  place.scrollIntoView({ block: "nearest" });
  const field = $(name);
  if (!field || !("value" in field)) return;
  if (SIDES.includes(name)) choose("custom");
  field.setAttribute("aria-invalid", "true");
  field.focus();
}

/** Sets the seed to keep; null lets each job have one of its own. */
export function setSeed(seed) {
  $("seed").value = seed ?? "";
  showLock();
}

function showLock() {
  const locked = $("seed").value.trim() !== "";
  $("lock").setAttribute("aria-pressed", String(locked));
  $("lock").replaceChildren(icon(locked ? "locked" : "open"));
}

const showQuality = () => ($("quality-field").hidden = $("output_format").value === "png");

/** Opens or closes the side panel. */
export function unfold(open) {
  $("form").classList.toggle("folded", !open);
  $("fold").setAttribute("aria-expanded", String(open));
}

/**
 * Listens to the controls.
 * @param {() => number|null} shownSeed the seed of the image on the canvas.
 */
export function listen(shownSeed) {
  $("die").append(icon("die"));
  $("die").onclick = () => setSeed(randomSeed());
  $("lock").onclick = () => setSeed($("seed").value.trim() ? null : (shownSeed() ?? randomSeed()));
  $("seed").oninput = showLock;
  $("output_format").onchange = showQuality;
  unfold(!isNarrow());
  $("fold").onclick = () => {
    const open = $("form").classList.contains("folded");
    unfold(open);
    if (open && isNarrow()) $("settings").scrollIntoView();
  };
  showLock();
}
