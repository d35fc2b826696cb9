// What can be done with the images on the canvas.

import { $, button, node, save } from "./dom.js";
import { beforeOf } from "./before.js";
import { copy } from "./clipboard.js";
import * as form from "./form.js";
import { linkTo } from "./link.js";
import { fileName, hasReferences } from "./entry.js";
import * as references from "./references.js";
import { curl, javascript, python, runpod } from "./snippets.js";
import { service } from "./service.js";
import { showEntry, showSlider, shown } from "./stage.js";
import { urlOf } from "./store.js";
import { t } from "./text.js";
import { view } from "./viewer.js";
import { zip } from "./zip.js";

/** Saves the images of some entries as one zip. */
export async function saveAll(entries) {
  const files = entries.flatMap((entry) => entry.images.map((blob, i) => ({ name: fileName(entry, i), blob })));
  save(await zip(files), `image-gen-${new Date().toISOString().slice(0, 10)}.zip`);
}

/**
 * Shows the buttons for the entry on the canvas.
 * @param {{vary: Function, again: Function, forget: Function}} studio what the page does with an entry.
 */
export function renderActions(studio) {
  const { entry } = shown;
  $("actions").hidden = !entry;
  if (!entry) return $("actions").replaceChildren();
  const one = () => ({ blob: entry.images[shown.index], name: fileName(entry, shown.index) });
  const download = button(t("download"), () => save(one().blob, one().name));
  const before = button(t("before_after"), () => toggle(before, entry), { "aria-pressed": "false" });
  const seed = entry.answer.seeds[shown.index];
  const many = (service.capabilities?.limits.num_images ?? 1) >= 4;
  const whole = hasReferences(entry);
  $("actions").replaceChildren(
    ...[
      button(t("full_screen"), () => view(entry, shown.index)),
      download,
      entry.images.length > 1 && button(t("download_all_n", { n: entry.images.length }), () => saveAll([entry])),
      button(t("use_as_reference"), () => references.add(one())),
      entry.references.length > 0 && before,
      whole && many && button(t("four_variations"), () => studio.vary(entry)),
      button(t("seed_n", { seed }), () => form.setSeed(seed), { title: t("keep_seed") }),
      button(t("settings_again"), () => studio.again(entry)),
      whole && copyMenu(entry),
      button(t("forget"), () => studio.forget(entry)),
    ].filter(Boolean),
  );
}

async function toggle(pressed, entry) {
  const on = pressed.getAttribute("aria-pressed") === "false";
  pressed.setAttribute("aria-pressed", String(on));
  if (!on) return showEntry(entry, shown.index);
  const before = await beforeOf(entry);
  const after = entry.images[shown.index];
  showSlider({ src: urlOf(before), alt: t("before") }, { src: urlOf(after), alt: entry.fields.prompt });
}

function copyMenu(entry) {
  // With its seed, so that it is the same image there.
  const { num_images: n = 1, ...rest } = entry.fields;
  const fields = { ...rest, ...(n > 1 && { num_images: n }), seed: entry.answer.seeds[0] };
  const ways = [
    ["curl", () => curl(entry, fields)],
    ["Python", () => python(entry, fields)],
    ["JavaScript", () => javascript(entry, fields)],
    [t("runpod_job"), () => runpod(entry, fields)],
    [t("link"), () => linkTo(fields)],
  ];
  const summary = node("summary", {}, t("copy_as"));
  const menu = node("details", { className: "menu" }, summary);
  const choose = async (make) => {
    menu.open = false;
    summary.focus();
    if (await copy(await make())) $("status").textContent = t("copied");
  };
  menu.append(node("div", { className: "items" }, ...ways.map(([name, make]) => button(name, () => choose(make)))));
  menu.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    menu.open = false;
    summary.focus();
  });
  menu.addEventListener("focusout", (event) => {
    if (event.relatedTarget && !menu.contains(event.relatedTarget)) menu.open = false;
  });
  return menu;
}
