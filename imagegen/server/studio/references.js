// The reference images: chosen, dropped or pasted, in an order that is dragged or moved by buttons.

import { $, iconButton, node } from "./dom.js";
import { service } from "./service.js";
import { urlOf } from "./store.js";
import { t } from "./text.js";

/** Pixels that a pointer moves before it drags. */
const DRAG_START = 6;

/** `list` of {name, blob, width, height}; "change" events. */
export const references = Object.assign(new EventTarget(), { list: [] });

function changed() {
  render();
  references.dispatchEvent(new Event("change"));
}

const say = (text) => ($("images-error").textContent = text);
const most = () => service.capabilities?.limits.images ?? 4;

/** What is wrong with an image: the browser cannot read it, or the server takes none so large; null for a good one. */
async function faultOf(blob, name, image) {
  const { reference_mb = Infinity, photo_megapixels = Infinity } = service.capabilities?.limits ?? {};
  const rounded = (number) => Math.ceil(number * 10) / 10;
  const megabytes = blob.size / 1e6;
  if (megabytes > reference_mb) return t("too_many_bytes", { name, got: rounded(megabytes), most: reference_mb });
  try {
    await image.decode();
  } catch {
    return t("not_an_image", { name });
  }
  const megapixels = (image.naturalWidth * image.naturalHeight) / 1e6;
  if (megapixels <= photo_megapixels) return null;
  return t("too_many_pixels", { name, got: rounded(megapixels), most: photo_megapixels });
}

/** Adds images, {blob, name}; what is not added is said. */
export async function add(...images) {
  const faults = [];
  for (const { blob, name } of images) {
    const image = node("img", { src: urlOf(blob) });
    const fault = await faultOf(blob, name, image);
    if (fault) faults.push(fault);
    else if (references.list.length >= most()) faults.push(t("too_many_references", { n: most() }));
    else references.list.push({ name, blob, width: image.naturalWidth, height: image.naturalHeight });
  }
  say([...new Set(faults)].join(" "));
  changed();
}

const addFiles = (files) => add(...files.map((file) => ({ blob: file, name: file.name || t("pasted") })));

/** Replaces all of them, as an entry of the history has them. */
export async function replace(kept) {
  references.list = [];
  await add(...kept);
}

function move(from, to) {
  references.list.splice(to, 0, ...references.list.splice(from, 1));
  changed();
}

function render() {
  $("references").replaceChildren(...references.list.map(item));
}

function item(reference, i) {
  const n = i + 1;
  const image = node("img", { src: urlOf(reference.blob), draggable: false });
  image.alt = t("reference_n", { number: n, name: reference.name });
  const earlier = iconButton("earlier", t("move_earlier", { number: n }), () => moveAndFocus(i, i - 1, 0));
  earlier.disabled = i === 0;
  const forget = iconButton("close", t("remove_reference", { number: n }), () => {
    references.list.splice(i, 1);
    changed();
    ($("references").querySelectorAll("button")[0] ?? $("choose")).focus();
  });
  const made = node("li", {}, image, node("div", {}, earlier, node("span", {}, String(n)), forget));
  image.addEventListener("pointerdown", (event) => drag(event, made, i));
  return made;
}

function moveAndFocus(from, to, which) {
  move(from, to);
  const buttons = $("references").children[to].querySelectorAll("button");
  [...buttons]
    .slice(which)
    .find((one) => !one.disabled)
    ?.focus();
}

/** Follows a pointer, mouse or finger, and moves the reference to where it is let go. */
function drag(event, dragged, from) {
  if (event.button !== 0) return;
  const start = { x: event.clientX, y: event.clientY };
  let to = from;
  const follow = ({ clientX, clientY }) => {
    if (Math.hypot(clientX - start.x, clientY - start.y) < DRAG_START) return;
    dragged.classList.add("dragged");
    const items = [...$("references").children];
    const centre = (one) => one.getBoundingClientRect();
    const nearest = items.reduce(
      (best, one) => {
        const box = centre(one);
        const distance = Math.hypot(box.x + box.width / 2 - clientX, box.y + box.height / 2 - clientY);
        return distance < best.distance ? { one, distance } : best;
      },
      { one: dragged, distance: Infinity },
    );
    to = items.indexOf(nearest.one);
    for (const one of items) one.classList.toggle("target", one === nearest.one && one !== dragged);
  };
  const end = () => {
    window.removeEventListener("pointermove", follow);
    if (to === from) render();
    else move(from, to);
  };
  window.addEventListener("pointermove", follow);
  window.addEventListener("pointerup", end, { once: true });
  window.addEventListener("pointercancel", end, { once: true });
}

/** Listens to the file button, to what is dropped anywhere on the page, and to what is pasted. */
export function listen(draggedResult) {
  $("choose").onclick = () => $("files").click();
  $("files").onchange = async () => {
    await addFiles([...$("files").files]);
    $("files").value = "";
  };
  const over = (on) => (event) => {
    if (on) event.preventDefault();
    $("drop").classList.toggle("over", on);
  };
  for (const name of ["dragover", "dragenter"]) document.addEventListener(name, over(true));
  for (const name of ["dragleave", "dragend"]) document.addEventListener(name, over(false));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    const result = draggedResult();
    if (result) add(result);
    else addFiles([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    addFiles([...event.clipboardData.files]);
  });
}
