// Two images on top of each other, and a slider between them.

import { node } from "./dom.js";
import { t } from "./text.js";

/**
 * @param {{src: string, alt: string}} before is seen left of the slider.
 * @param {{src: string, alt: string}} after
 */
export function slider(before, after) {
  const top = node("img", { ...before, className: "before", draggable: false });
  const line = node("span", { className: "line", "aria-hidden": "true" });
  const range = node("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": t("compare_slider") });
  const made = node("div", { className: "slider" }, node("img", { ...after, draggable: false }), top, line, range);
  const show = () => {
    top.style.clipPath = `inset(0 ${100 - range.value}% 0 0)`;
    line.style.left = `${range.value}%`;
  };
  range.oninput = show;
  // The whole surface is the slider: a finger need not find its knob.
  const follow = (event) => {
    if (event.buttons !== 1 && event.type !== "pointerdown") return;
    const box = made.getBoundingClientRect();
    range.value = ((event.clientX - box.x) / box.width) * 100;
    show();
  };
  made.addEventListener("pointerdown", (event) => {
    made.setPointerCapture(event.pointerId);
    follow(event);
    range.focus();
    event.preventDefault();
  });
  made.addEventListener("pointermove", follow);
  show();
  return made;
}
