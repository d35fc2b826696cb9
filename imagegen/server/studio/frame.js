// Outpainting: the frame around an image is pulled outwards, and what is new is generated.

import { button, node } from "./dom.js";
import { urlOf } from "./store.js";
import { t } from "./text.js";

const SIDES = ["left", "top", "right", "bottom"];
/** The server's own bound on a side, in pixels. */
const MAX_EXPAND = 8192;
/** Pulling goes in steps of pixels; the number fields take any. */
const STEP = 8;

/**
 * Opens the frame.
 * @param {{blob: Blob, width: number, height: number}} reference
 * @param {object|null} before pixels by side, as they are.
 * @returns {Promise<object|null>} pixels of the image by side, those of 0 left out; null for no frame.
 */
export async function pullFrame(reference, before) {
  const { width, height } = reference;
  const sides = { left: 0, top: 0, right: 0, bottom: 0, ...before };
  const image = node("img", { src: urlOf(reference.blob), alt: "", draggable: false });
  const handles = [...SIDES, "left top", "right top", "left bottom", "right bottom"].map((names) => {
    const handle = node("span", { className: `handle ${names}`, "aria-hidden": "true" });
    handle.onpointerdown = (event) => pull(event, handle, names.split(" "));
    return handle;
  });
  const frame = node("div", { className: "frame" }, image, ...handles);
  const area = node("div", { className: "outpaint" }, frame);
  const size = node("output", { className: "dim" });
  let scale = 1;

  /** Fits image and frame into the area, with room to pull. */
  function fit() {
    const across = Math.max(width * 2, (sides.left + width + sides.right) * 1.3);
    const down = Math.max(height * 2, (sides.top + height + sides.bottom) * 1.3);
    scale = Math.min(area.clientWidth / across, area.clientHeight / down);
    show();
  }

  function show() {
    const { left, top, right, bottom } = sides;
    Object.assign(image.style, {
      left: `${left * scale}px`,
      top: `${top * scale}px`,
      width: `${width * scale}px`,
      height: `${height * scale}px`,
    });
    // The image stays where it is: the frame moves around it.
    Object.assign(frame.style, {
      left: `${area.clientWidth / 2 - (width / 2 + left) * scale}px`,
      top: `${area.clientHeight / 2 - (height / 2 + top) * scale}px`,
      width: `${(left + width + right) * scale}px`,
      height: `${(top + height + bottom) * scale}px`,
    });
    size.textContent = `${left + width + right} × ${top + height + bottom}`;
    for (const side of SIDES) if (document.activeElement !== inputs[side]) inputs[side].value = sides[side];
  }

  const bounded = (pixels) => Math.min(MAX_EXPAND, Math.max(0, Math.round(pixels) || 0));

  function pull(event, handle, names) {
    const start = { x: event.clientX, y: event.clientY, ...sides };
    handle.setPointerCapture(event.pointerId);
    event.preventDefault();
    handle.onpointermove = ({ clientX, clientY }) => {
      const moved = {
        left: start.x - clientX,
        right: clientX - start.x,
        top: start.y - clientY,
        bottom: clientY - start.y,
      };
      for (const name of names) sides[name] = bounded(Math.round((start[name] + moved[name] / scale) / STEP) * STEP);
      show();
    };
    handle.onpointerup = handle.onpointercancel = () => {
      handle.onpointermove = null;
      fit();
    };
  }

  const inputs = Object.fromEntries(
    SIDES.map((side) => {
      const input = node("input", {
        type: "number",
        id: `expand-${side}`,
        min: 0,
        max: MAX_EXPAND,
        step: 1,
        value: sides[side],
      });
      input.oninput = () => {
        sides[side] = bounded(Number(input.value));
        fit();
      };
      return [side, input];
    }),
  );
  const fields = SIDES.map((side) =>
    node("div", {}, node("label", { htmlFor: `expand-${side}` }, t(side)), inputs[side]),
  );
  const close = (value) => dialog.close(value);
  const dialog = node(
    "dialog",
    { className: "sheet wide", "aria-label": t("change_expand") },
    area,
    node("div", { className: "sides" }, ...fields),
    node(
      "div",
      { className: "tools" },
      size,
      button(t("no_frame"), () => close("none")),
      button(t("cancel"), () => close("")),
      button(t("use_frame"), () => close("use"), { className: "primary" }),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  new ResizeObserver(fit).observe(area);
  inputs.left.focus();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.remove();
  if (dialog.returnValue === "none") return null;
  if (dialog.returnValue !== "use") return before;
  const pulled = SIDES.filter((side) => sides[side] > 0).map((side) => [side, sides[side]]);
  return pulled.length ? Object.fromEntries(pulled) : null;
}
