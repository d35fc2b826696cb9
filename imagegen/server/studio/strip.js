// The strip of this visit's images: each opens with its settings; two are compared.

import { $, node } from "./dom.js";
import { service } from "./service.js";
import { all, isKept, urlOf } from "./store.js";
import { t } from "./text.js";

let comparing = null;

/**
 * Shows the strip.
 * @param {object} current the entry on the canvas.
 * @param {(entry: object) => void} open
 */
export function renderStrip(current, open, compare) {
  const finished = all().filter((entry) => entry.images.length);
  $("strip").replaceChildren(...finished.map((entry) => thumb(entry, current, open, compare)));
  $("clear").hidden = $("save-all").hidden = finished.length === 0;
  $("compare").hidden = finished.length < 2;
  $("history-note").textContent = comparing ? t("choose_two") : isKept() ? "" : t("not_kept");
}

function thumb(entry, current, open, compare) {
  const count = entry.images.length;
  const name = count > 1 ? t("entry_of", { prompt: entry.fields.prompt, n: count }) : entry.fields.prompt;
  const image = node("img", { src: urlOf(entry.images[0]), alt: "", loading: "lazy" });
  const one = node("button", { type: "button", title: name, "aria-label": name }, image);
  if (count > 1) one.dataset.count = count; // drawn by the style: the name says it in words
  if (comparing) one.setAttribute("aria-pressed", String(comparing.includes(entry)));
  else if (entry === current) one.setAttribute("aria-current", "true");
  one.onclick = () => (comparing ? pick(entry, compare) : open(entry));
  return node("li", {}, one);
}

function pick(entry, compare) {
  comparing = comparing.includes(entry) ? comparing.filter((one) => one !== entry) : [...comparing, entry];
  if (comparing.length === 2) {
    const pair = comparing;
    setComparing(false);
    compare(...pair);
  } else service.dispatchEvent(new Event("strip"));
}

/** Begins or ends choosing two. */
export function setComparing(on) {
  comparing = on ? [] : null;
  $("compare").setAttribute("aria-pressed", String(on));
  service.dispatchEvent(new Event("strip"));
}

export const isComparing = () => comparing !== null;
