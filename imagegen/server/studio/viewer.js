// One image on the full screen: zoom by wheel, pinch, buttons and keys; pan by dragging and arrows.

import { iconButton, node } from "./dom.js";
import { urlOf } from "./store.js";
import { button } from "./dom.js";
import { t } from "./text.js";

const MAX_ZOOM = 16;
const STEP = 1.25;
const PAN = 80;

/** Opens an entry's image. */
export function view(entry, index) {
  let zoom = 1;
  let at = { x: 0, y: 0 };
  let i = index;
  const fingers = new Map();

  const image = node("img", { draggable: false });
  const share = node("output", { "aria-live": "polite" });
  const frame = node("div", { className: "frame" }, image);
  const several = entry.images.length > 1;
  const tools = node(
    "div",
    { className: "tools" },
    several && iconButton("earlier", t("previous_image"), () => turn(-1)),
    several && iconButton("later", t("next_image"), () => turn(1)),
    button("−", () => zoomBy(1 / STEP), { "aria-label": t("zoom_out") }),
    share,
    button("+", () => zoomBy(STEP), { "aria-label": t("zoom_in") }),
    button(t("fit"), () => set(1, 0, 0)),
    button("1:1", () => set(naturalZoom(), 0, 0), { title: t("actual_size") }),
    iconButton("close", t("close"), () => dialog.close()),
  );
  const dialog = node("dialog", { className: "viewer", "aria-label": t("full_screen") }, frame, tools);

  function show() {
    image.style.transform = `translate(${at.x}px, ${at.y}px) scale(${zoom})`;
    share.textContent = `${Math.round((zoom / naturalZoom()) * 100)} %`;
  }

  /** The zoom at which one pixel of the image is one of the page. */
  function naturalZoom() {
    const fitted = Math.min(frame.clientWidth / image.naturalWidth, frame.clientHeight / image.naturalHeight);
    return Number.isFinite(fitted) && fitted > 0 ? 1 / fitted : 1;
  }

  function set(wanted, x, y) {
    zoom = Math.min(MAX_ZOOM * naturalZoom(), Math.max(Math.min(1, naturalZoom()), wanted));
    at = { x, y };
    show();
  }

  /** Zooms so that the point (x, y), from the middle of the frame, stays where it is. */
  function zoomBy(factor, x = 0, y = 0) {
    const before = zoom;
    set(zoom * factor, at.x, at.y);
    const real = zoom / before;
    at = { x: x - (x - at.x) * real, y: y - (y - at.y) * real };
    show();
  }

  const fromMiddle = (event) => {
    const box = frame.getBoundingClientRect();
    return [event.clientX - box.x - box.width / 2, event.clientY - box.y - box.height / 2];
  };

  function turn(by) {
    i = (i + by + entry.images.length) % entry.images.length;
    image.src = urlOf(entry.images[i]);
    image.alt = entry.fields.prompt;
    set(1, 0, 0);
  }

  frame.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? STEP : 1 / STEP, ...fromMiddle(event));
  });
  frame.addEventListener("pointerdown", (event) => {
    frame.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, event);
  });
  frame.addEventListener("pointermove", (event) => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const others = [...fingers.values()].filter((one) => one.pointerId !== event.pointerId);
    if (others.length === 1) {
      const spread = (one) => Math.hypot(one.clientX - others[0].clientX, one.clientY - others[0].clientY);
      zoomBy(spread(event) / Math.max(1, spread(last)), ...fromMiddle(others[0]));
    } else if (others.length === 0) {
      at = { x: at.x + event.clientX - last.clientX, y: at.y + event.clientY - last.clientY };
      show();
    }
    fingers.set(event.pointerId, event);
  });
  for (const name of ["pointerup", "pointercancel"]) {
    frame.addEventListener(name, (event) => fingers.delete(event.pointerId));
  }
  frame.addEventListener("dblclick", () => (zoom > 1 ? set(1, 0, 0) : zoomBy(naturalZoom() > 1 ? naturalZoom() : 2)));
  image.addEventListener("load", show);
  dialog.addEventListener("keydown", (event) => {
    const pan = { ArrowLeft: [PAN, 0], ArrowRight: [-PAN, 0], ArrowUp: [0, PAN], ArrowDown: [0, -PAN] }[event.key];
    if (event.key === "+" || event.key === "=") zoomBy(STEP);
    else if (event.key === "-") zoomBy(1 / STEP);
    else if (event.key === "0") set(1, 0, 0);
    else if (pan && zoom <= 1 && several && pan[0]) turn(-Math.sign(pan[0]));
    else if (pan) set(zoom, at.x + pan[0], at.y + pan[1]);
    else return;
    event.preventDefault();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  turn(0);
}
