// The canvas: the images of one entry, the image that forms, two that are compared, or what the server waits for.

import { $, node } from "./dom.js";
import { fileName } from "./entry.js";
import { slider } from "./slider.js";
import { service } from "./service.js";
import { urlOf } from "./store.js";
import { t } from "./text.js";
import { view as openViewer } from "./viewer.js";

/** Images below this many pixels are shown with hard edges: enlarged smoothly they are only blurred. */
const TINY = 257;
/** Pixels between two images. */
const GAP = 8;

/** The entry that is shown, the image of it that the buttons are for, and the one that is being dragged. */
export const shown = { entry: null, index: 0, dragged: null };

const fill = (...children) => $("view").replaceChildren(...children);

export function showNothing() {
  Object.assign(shown, { entry: null, index: 0 });
  warn([]);
  fill(node("p", { className: "hint" }, t("empty_canvas")));
}

/** What the server did otherwise than asked, above the image that it is about. */
function warn(warnings) {
  $("warnings").replaceChildren(...warnings.map((warning) => node("li", { lang: "en" }, warning)));
}

/** Shows an entry's images side by side. */
export function showEntry(entry, index = 0) {
  Object.assign(shown, { entry, index });
  warn(entry.answer.warnings);
  const tiles = node("div", { className: "tiles" }, ...entry.images.map((blob, i) => tile(entry, blob, i)));
  fill(tiles);
  arrange();
}

/** As many columns as make the images largest. */
function arrange() {
  const tiles = $("view").querySelector(".tiles");
  if (!tiles || !shown.entry) return;
  const { images, answer } = shown.entry;
  const shape = answer.width / answer.height;
  const { clientWidth, clientHeight } = $("view");
  const width = (columns) => {
    const rows = Math.ceil(images.length / columns);
    return Math.min((clientWidth - GAP * (columns - 1)) / columns, ((clientHeight - GAP * (rows - 1)) / rows) * shape);
  };
  const columns = images.map((_, i) => i + 1).reduce((best, one) => (width(one) > width(best) ? one : best), 1);
  tiles.style.gridTemplateColumns = `repeat(${columns}, ${width(columns)}px)`;
  tiles.style.gridAutoRows = `${width(columns) / shape}px`;
}

new ResizeObserver(arrange).observe($("view"));

function tile(entry, blob, i) {
  const { width, height } = entry.answer;
  const image = node("img", { src: urlOf(blob), alt: entry.fields.prompt, width, height, draggable: false });
  if (Math.max(width, height) < TINY) image.classList.add("tiny");
  const one = node("button", { type: "button", className: "tile", draggable: true, onclick: () => select(i) }, image);
  if (entry.images.length > 1) one.setAttribute("aria-pressed", String(i === shown.index));
  else one.title = t("full_screen");
  one.ondblclick = () => openViewer(entry, i);
  one.ondragstart = (event) => {
    shown.dragged = { blob, name: fileName(entry, i) };
    event.dataTransfer.setData("text/plain", fileName(entry, i));
    event.dataTransfer.setDragImage(image, 20, 20);
  };
  one.ondragend = () => (shown.dragged = null);
  return one;
}

/** The first press chooses an image among several, the next one opens it. */
function select(i) {
  if (shown.index === i || shown.entry.images.length === 1) return openViewer(shown.entry, i);
  shown.index = i;
  for (const [n, one] of [...$("view").querySelectorAll(".tile")].entries()) {
    one.setAttribute("aria-pressed", String(n === i));
  }
  $("view").dispatchEvent(new Event("selected"));
}

/** The image as it forms, in place of the one that the buttons are for. */
export function showPreview(jpeg) {
  $("actions").hidden = true;
  $("facts").textContent = "";
  warn([]);
  const image = $("view").querySelector(".preview") ?? node("img", { className: "preview", alt: t("preview") });
  image.src = `data:image/jpeg;base64,${jpeg}`;
  if (!image.isConnected) fill(image);
}

/** Two images with a slider between them. */
export function showSlider(before, after) {
  fill(slider(before, after));
}

/** What a job waits for, and how far it is; null hides the bar. */
export function showProgress(share, text) {
  $("progress").hidden = share === null;
  if (share === null || share === undefined) $("progress").removeAttribute("value");
  else $("progress").value = share;
  $("status").textContent = text;
}

/** What loading is doing, in the server's words, for behind a sentence. */
const stageOf = (stage) => (stage ? `: ${stage}` : "");

/** The words for what a job reports, and the share that is done; undefined where nobody knows. */
export function describe(state) {
  const { status, health } = service;
  if (state.name === "queued" && ["starting", "loading"].includes(status)) {
    return [undefined, t("begins_when_ready", { stage: stageOf(health.stage) })];
  }
  if (state.name === "queued") return [undefined, state.place > 0 ? t("waiting", { n: state.place }) : t("starting")];
  if (state.name === "references") return [undefined, t("reading_references")];
  if (state.name === "step") {
    const left = Math.ceil(state.seconds_left);
    const step = t("step", { step: state.step, total: state.total });
    return [state.step / state.total, left >= 1 ? `${step} ${t("seconds_left", { n: left })}` : step];
  }
  if (state.name === "drawn") return [1, t("encoding")];
  if (state.name === "full") return [undefined, t("full", { n: state.seconds })];
  if (state.name === "limited") return [undefined, t("limited", { n: state.seconds })];
  if (state.name === "lost") return [undefined, t("lost")];
  if (state.name === "loading") return [undefined, t("begins_when_ready", { stage: stageOf(state.stage) })];
  return [undefined, t("sent")];
}

/** The server's state: in the header always, and on the canvas where no job can be sent. */
export function showService() {
  const { status, health, wrongKey } = service;
  const moods = { idle: "good", ready: "good", busy: "busy", failed: "bad", away: "bad", locked: "bad" };
  $("service").dataset.mood = moods[status] ?? "busy";
  $("service").textContent = [health.model, health.device, t(`status_${status}`)].filter(Boolean).join(" · ");
  const notices = {
    failed: () => t("notice_failed", { message: health.message ?? "" }),
    away: () => t("notice_away"),
    draining: () => t("notice_draining"),
    loading: () => t("notice_loading", { stage: stageOf(health.stage) }),
    starting: () => t("notice_loading", { stage: "" }),
  };
  $("notice").textContent = notices[status]?.() ?? "";
  $("notice").dataset.mood = moods[status] ?? "busy";
  $("key-row").hidden = status !== "locked";
  $("key-error").textContent = status === "locked" ? t(wrongKey ? "key_refused" : "key_needed") : "";
}
