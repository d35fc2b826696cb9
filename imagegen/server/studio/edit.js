// What an edit of the first reference may change: all of it, a painted area, what is new around it.

import { $, button, node } from "./dom.js";
import { pullFrame } from "./frame.js";
import { paintMask } from "./mask.js";
import { references } from "./references.js";
import { has } from "./service.js";
import { urlOf } from "./store.js";
import { t } from "./text.js";

/** way: "all", "auto" (what does not change is kept), "mask" or "expand". */
const state = { way: "all", mask: null, expand: null, strength: 1, first: null };

const ways = () => [
  "all",
  ...(has("edit", "preserve") ? ["auto"] : []),
  ...(has("edit", "mask") ? ["mask"] : []),
  ...(has("edit", "expand") ? ["expand"] : []),
];

/** Where there is new canvas, nothing is there to begin at. */
const hasStrength = () => has("edit", "strength") && state.way !== "expand";

/** What is edited at its own size has the reference's shape. */
const keepsShape = () => ["auto", "mask"].includes(state.way) || (hasStrength() && state.strength < 1);

const fault = (field, message) => Object.assign(new Error(message), { field });

/** The fields of an edit; throws an error with its field where something is to be painted or pulled first. */
export function editFields() {
  const { way, expand, strength } = state;
  const shape = document.querySelector("[name=shape]:checked")?.value ?? "";
  const fields = hasStrength() && strength < 1 ? { strength } : {};
  if (way === "auto") return { ...fields, preserve: "auto" };
  if (way === "mask" && !state.mask) throw fault("mask", t("paint_first"));
  if (way === "expand" && expand) return { ...fields, expand };
  if (way === "expand" && !shape.includes(":")) throw fault("expand", t("pull_first"));
  return way === "expand" ? { ...fields, fit: "expand" } : fields;
}

export const mask = () => (state.way === "mask" ? state.mask : null);

/** Takes the settings of an entry of the history up again; its references are there already. */
export function restore({ fields, mask: kept }) {
  const { expand = null, fit, preserve = "off", strength = 1 } = fields;
  const way = kept ? "mask" : expand || fit ? "expand" : preserve === "auto" ? "auto" : "all";
  Object.assign(state, { way, mask: kept, expand, strength });
  render();
}

/** Shows what this server can do for the first reference; what was painted for another one is gone. */
export function render() {
  const first = references.list[0]?.blob ?? null;
  if (first !== state.first) {
    const again = state.first === null;
    Object.assign(state, { first, ...(!again && { mask: null, expand: null }) });
    if (!first) Object.assign(state, { way: "all", mask: null, expand: null, strength: 1 });
  }
  $("edit").hidden = !first || (ways().length === 1 && !has("edit", "strength"));
  $("shape-field").disabled = Boolean(first) && keepsShape();
  if (!first) return;
  const chosen = node("div", { className: "chosen" });
  if (state.way === "mask") chosen.append(...maskTools());
  if (state.way === "expand") chosen.append(...frameTools());
  const legend = node("legend", {}, t("change"));
  const list = ways().length > 1 ? [node("fieldset", {}, legend, ...ways().map(choice)), chosen] : [];
  $("edit").replaceChildren(...list, ...(hasStrength() ? [strengthRange()] : []));
}

function choice(way) {
  const choose = () => {
    state.way = way;
    render();
    $("edit").querySelector(`[value=${way}]`).focus();
  };
  const input = node("input", { type: "radio", name: "way", value: way, checked: state.way === way, onchange: choose });
  return node("label", { className: "line" }, input, node("span", {}, t(`change_${way}`)));
}

function maskTools() {
  const paint = async () => {
    const [reference] = references.list;
    state.mask = (await paintMask(reference, state.mask)) ?? state.mask;
    $("mask-error").textContent = "";
    render();
    $("edit").querySelector("#paint").focus();
  };
  const words = state.mask ? t("paint_again") : t("paint_mask");
  const thumb = state.mask && node("img", { src: urlOf(state.mask), alt: t("mask"), className: "mask-thumb" });
  return [thumb, button(words, paint, { id: "paint" })].filter(Boolean);
}

function frameTools() {
  const pull = async () => {
    state.expand = await pullFrame(references.list[0], state.expand);
    $("expand-error").textContent = "";
    render();
    $("edit").querySelector("#pull").focus();
  };
  const sides = Object.entries(state.expand ?? {}).map(([side, pixels]) => `${t(side)} +${pixels}`);
  return [
    button(t("pull_frame"), pull, { id: "pull" }),
    node("p", { className: "dim" }, sides.join(", ") || t("or_shape")),
  ];
}

function strengthRange() {
  const shown = node("output", {}, state.strength.toFixed(2));
  const change = (event) => {
    state.strength = Number(event.target.value);
    shown.textContent = state.strength.toFixed(2);
    $("shape-field").disabled = keepsShape();
  };
  const range = {
    type: "range",
    id: "strength",
    min: 0,
    max: 1,
    step: 0.05,
    value: state.strength,
    oninput: change,
  };
  const label = node("label", { htmlFor: "strength" }, t("strength"), " ", shown);
  return node(
    "div",
    {},
    label,
    node("input", range),
    node("p", { className: "error", id: "strength-error", role: "alert" }),
  );
}
