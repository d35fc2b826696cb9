// Painting which part of an image is edited: with a mouse, a finger, a pen or the arrow keys.

import { button, icon, node } from "./dom.js";
import { urlOf } from "./store.js";
import { t } from "./text.js";

/** The longer side of the mask in pixels: a larger image's mask is enlarged by the server. */
const MAX_SIDE = 1536;
const MIN_BRUSH = 2;
const COLOUR = "#e6007a";

/**
 * Opens the painter.
 * @param {{blob: Blob, width: number, height: number}} reference
 * @param {Blob|null} before the mask so far.
 * @returns {Promise<Blob|null>} a PNG, white where the image is edited; null where nothing is to change.
 */
export async function paintMask(reference, before) {
  const scale = Math.min(1, MAX_SIDE / Math.max(reference.width, reference.height));
  const width = Math.max(1, Math.round(reference.width * scale));
  const height = Math.max(1, Math.round(reference.height * scale));
  const canvas = node("canvas", { width, height, tabIndex: 0, role: "application", "aria-label": t("mask_keys") });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const base = before && (await readMask(before, width, height));
  const strokes = [];
  let size = Math.round(Math.max(width, height) / 12);
  let erase = false;
  let at = { x: width / 2, y: height / 2 };

  const ring = node("span", { className: "ring", "aria-hidden": "true" });
  const place = node("div", { className: "paint" }, node("img", { src: urlOf(reference.blob), alt: "" }), canvas, ring);
  place.style.aspectRatio = `${width} / ${height}`;
  place.style.setProperty("--shape", String(width / height));

  function redraw() {
    context.globalCompositeOperation = "source-over";
    context.clearRect(0, 0, width, height);
    if (base) context.putImageData(base, 0, 0);
    for (const stroke of strokes) draw(stroke);
    undo.disabled = strokes.length === 0;
  }

  function draw(stroke) {
    const modes = { paint: "source-over", erase: "destination-out", invert: "xor", fill: "copy" };
    context.globalCompositeOperation = modes[stroke.kind];
    context.fillStyle = context.strokeStyle = COLOUR;
    if (!stroke.points) return context.fillRect(0, 0, width, height);
    Object.assign(context, { lineWidth: stroke.size, lineCap: "round", lineJoin: "round" });
    context.beginPath();
    const [[x, y], ...others] = stroke.points;
    context.moveTo(x, y);
    context.lineTo(x + 0.01, y);
    for (const point of others) context.lineTo(...point);
    context.stroke();
  }

  function showRing() {
    const unit = canvas.clientWidth / width;
    Object.assign(ring.style, {
      width: `${size * unit}px`,
      height: `${size * unit}px`,
      left: `${at.x * unit}px`,
      top: `${at.y * unit}px`,
    });
  }

  function add(stroke) {
    strokes.push(stroke);
    redraw();
  }

  const begin = () => add({ kind: erase ? "erase" : "paint", size, points: [[at.x, at.y]] });
  const extend = () => {
    strokes.at(-1).points.push([at.x, at.y]);
    redraw();
  };

  // Pointers.
  const follow = (event) => {
    const box = canvas.getBoundingClientRect();
    const inside = (value, most) => Math.min(most, Math.max(0, value));
    at = {
      x: inside(((event.clientX - box.x) / box.width) * width, width),
      y: inside(((event.clientY - box.y) / box.height) * height, height),
    };
    showRing();
  };
  let painting = null;
  canvas.onpointerdown = (event) => {
    if (painting !== null || event.button !== 0) return;
    painting = event.pointerId;
    canvas.setPointerCapture(painting);
    canvas.focus();
    event.preventDefault();
    follow(event);
    begin();
  };
  canvas.onpointermove = (event) => {
    if (painting !== null && event.pointerId !== painting) return;
    follow(event);
    if (painting !== null) extend();
  };
  canvas.onpointerup = canvas.onpointercancel = () => (painting = null);

  // Tools.
  const brush = button(t("brush"), () => setErase(false), { "aria-pressed": "true" });
  brush.prepend(icon("brush"));
  const eraser = button(t("erase"), () => setErase(true), { "aria-pressed": "false" });
  const undo = button(t("undo"), () => strokes.length && (strokes.pop(), redraw()), {
    title: "Ctrl+Z",
    disabled: true,
  });
  const range = node("input", {
    type: "range",
    id: "brush-size",
    min: MIN_BRUSH,
    max: Math.round(Math.max(width, height) / 3),
  });
  range.oninput = () => setSize(Number(range.value));
  const invert = () => add({ kind: "invert" });

  function setErase(on) {
    erase = on;
    brush.setAttribute("aria-pressed", String(!on));
    eraser.setAttribute("aria-pressed", String(on));
  }

  function setSize(pixels) {
    size = Math.min(Number(range.max), Math.max(MIN_BRUSH, Math.round(pixels)));
    range.value = size;
    showRing();
  }

  function onKey(event) {
    const step = Math.max(1, size / 2);
    const move = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] }[event.key];
    const onCanvas = event.target === canvas;
    if (event.key === "[") setSize(size / 1.2 - 1);
    else if (event.key === "]") setSize(size * 1.2 + 1);
    else if (event.key === "x") setErase(!erase);
    else if (event.key === "i") invert();
    else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo.click();
    else if (onCanvas && event.key === " ") begin();
    else if (onCanvas && move) {
      at = { x: Math.min(width, Math.max(0, at.x + move[0])), y: Math.min(height, Math.max(0, at.y + move[1])) };
      showRing();
      if (event.shiftKey && strokes.at(-1)?.points) extend();
    } else return;
    event.preventDefault();
  }

  const close = (value) => dialog.close(value);
  const tools = node(
    "div",
    { className: "tools", role: "toolbar", "aria-label": t("mask_tools") },
    brush,
    eraser,
    node("label", { htmlFor: "brush-size" }, t("brush_size")),
    range,
    button(t("invert"), invert, { title: "I" }),
    undo,
    button(t("clear"), () =>
      add({
        kind: "erase",
        size: 4 * MAX_SIDE,
        points: [
          [0, 0],
          [width, height],
        ],
      }),
    ),
    button(t("cancel"), () => close("")),
    button(t("use_mask"), () => close("use"), { className: "primary" }),
  );
  const dialog = node(
    "dialog",
    { className: "sheet wide", "aria-label": t("mask") },
    tools,
    place,
    node("p", { className: "dim" }, t("mask_help")),
  );
  dialog.addEventListener("keydown", onKey);
  document.body.append(dialog);
  dialog.showModal();
  setSize(size);
  redraw();
  canvas.focus();
  new ResizeObserver(showRing).observe(canvas);
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.remove();
  return dialog.returnValue === "use" ? toBlob(canvas) : null;
}

/** White on black, as the server reads it. */
function toBlob(painted) {
  const { width, height } = painted;
  const mask = node("canvas", { width, height });
  const context = mask.getContext("2d");
  context.drawImage(painted, 0, 0);
  context.globalCompositeOperation = "source-in";
  context.fillStyle = "#fff";
  context.fillRect(0, 0, width, height);
  context.globalCompositeOperation = "destination-over";
  context.fillStyle = "#000";
  context.fillRect(0, 0, width, height);
  return new Promise((resolve) => mask.toBlob(resolve));
}

/** A mask's white as paint. */
async function readMask(blob, width, height) {
  const canvas = node("canvas", { width, height });
  const context = canvas.getContext("2d");
  context.drawImage(await createImageBitmap(blob), 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const [red, green, blue] = COLOUR.match(/\w\w/g).map((part) => parseInt(part, 16));
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([red, green, blue, pixels.data[i]], i);
  return pixels;
}
