// Which of the server's LoRA adapters a job uses, and how strongly.

import { $, node } from "./dom.js";
import { service } from "./service.js";
import { t } from "./text.js";

/** The server's own bound on a scale. */
const MAX_SCALE = 4;

/** The adapters of the server that can be used, as names; none where it has no such thing. */
const names = () => (service.capabilities?.loras ?? []).filter((lora) => !lora.fault).map((lora) => lora.name ?? lora);

const boxes = () => [...document.querySelectorAll("[name=lora]")];

const scaleOf = (box) => box.closest(".lora").querySelector("[type=number]");

/** Shows the adapters, once it is known which there are. */
export function offerLoras() {
  if (!names().length) return $("loras").replaceChildren();
  const { loras: chosen } = readLoras();
  const items = names().map((name) => {
    const scale = node("input", {
      type: "number",
      min: -MAX_SCALE,
      max: MAX_SCALE,
      step: 0.1,
      value: 1,
    });
    Object.assign(scale, { disabled: true, ariaLabel: t("lora_scale", { name }) });
    const box = node("input", {
      type: "checkbox",
      name: "lora",
      value: name,
      onchange: () => (scale.disabled = !box.checked),
    });
    return node("div", { className: "lora" }, node("label", { className: "line" }, box, node("span", {}, name)), scale);
  });
  const error = node("p", { className: "error", id: "loras-error", role: "alert" });
  $("loras").replaceChildren(node("fieldset", {}, node("legend", {}, t("loras")), ...items, error));
  writeLoras(chosen);
}

/** The chosen ones, as the request has them. */
export function readLoras() {
  const chosen = boxes().filter((box) => box.checked);
  const loras = chosen.map((box) => ({ name: box.value, scale: Number(scaleOf(box).value || 1) }));
  return loras.length ? { loras } : {};
}

/** Takes a choice up again; an adapter that the server no longer has is left out. */
export function writeLoras(loras = []) {
  for (const box of boxes()) {
    const used = loras.find((one) => one.name === box.value);
    box.checked = Boolean(used);
    Object.assign(scaleOf(box), { disabled: !used, value: used?.scale ?? 1 });
  }
}
