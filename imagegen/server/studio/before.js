// The image before an edit, laid out as the image after it.

import { node } from "./dom.js";
import { urlOf } from "./store.js";

/** The first reference of an entry; where the canvas has grown, at its place on the larger canvas. */
export async function beforeOf(entry) {
  const [{ blob }] = entry.references;
  const image = node("img", { src: urlOf(blob) });
  await image.decode();
  const { width, height } = entry.answer;
  const { expand, fit } = entry.fields;
  if (!expand && !fit) return blob;
  const left = expand ? (expand.left ?? 0) : (width - image.naturalWidth) / 2;
  const top = expand ? (expand.top ?? 0) : (height - image.naturalHeight) / 2;
  const canvas = node("canvas", { width, height });
  canvas.getContext("2d").drawImage(image, left, top);
  return new Promise((resolve) => canvas.toBlob(resolve));
}
