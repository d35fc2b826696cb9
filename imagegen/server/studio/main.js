// The studio: from the settings to a job, from its answer to the canvas and the history.

import { renderActions, saveAll } from "./actions.js";
import { ApiError, key } from "./api.js";
import { $, button } from "./dom.js";
import * as edit from "./edit.js";
import { hasReferences } from "./entry.js";
import { examplesFor } from "./examples.js";
import * as form from "./form.js";
import { restore } from "./history.js";
import { fromLink } from "./link.js";
import { ask } from "./question.js";
import * as references from "./references.js";
import { drop, run } from "./runner.js";
import { refresh, refused, service } from "./service.js";
import { withImages } from "./snippets.js";
import * as stage from "./stage.js";
import * as store from "./store.js";
import { isComparing, renderStrip, setComparing } from "./strip.js";
import { follow, isFollowed } from "./tabs.js";
import { speak, t } from "./text.js";

const { shown } = stage;
/** Seconds of a stage that are worth telling. */
const SECONDS = 0.005;
let running = null;

/** Shows an entry of the history with its buttons. */
function open(entry, index = 0) {
  stage.showEntry(entry, index);
  render();
  const { answer } = entry;
  const times = Object.entries(answer.timings).filter(([name, seconds]) => seconds >= SECONDS && name !== "total");
  const facts = [
    `${answer.width}×${answer.height}`,
    ...times.map(([name, s]) => `${name.replace("_", " ")} ${s.toFixed(2)} s`),
  ];
  $("facts").textContent = facts.join(" · ");
}

function render() {
  renderActions({ vary, again, forget });
  renderStrip(shown.entry, open, compare);
  if (!shown.entry) $("facts").textContent = "";
}

function compare(one, other) {
  const [left, right] = one.made < other.made ? [one, other] : [other, one];
  Object.assign(shown, { entry: null, index: 0 });
  stage.showSlider(
    { src: store.urlOf(left.images[0]), alt: left.fields.prompt },
    { src: store.urlOf(right.images[0]), alt: right.fields.prompt },
  );
  render();
}

async function forget(entry) {
  await store.remove(entry);
  if (entry.job) drop(entry.job);
  const next = store.all().find((one) => one.images.length);
  if (next) return open(next);
  stage.showNothing();
  render();
}

async function again(entry) {
  form.write({ ...entry.fields, seed: entry.answer.seeds[0] });
  await references.replace(entry.references);
  edit.restore(entry);
  if (!hasReferences(entry)) return form.showError({ field: "images", message: t("references_gone") });
  $("prompt").focus();
}

const vary = (entry) =>
  generate({ ...entry.fields, num_images: 4, seed: form.randomSeed() }, entry.references, entry.mask);

/** A new job of the settings as they are. */
function submit() {
  form.clearErrors();
  if (service.status === "locked") return $("key").focus();
  if (service.status === "failed") return form.showError({ message: service.health.message ?? t("status_failed") });
  const used = [...references.references.list];
  const fields = { mode: used.length ? "edit" : "generate", ...form.read() };
  if (fields.seed === undefined) fields.seed = form.randomSeed(); // so that a job that is sent again is the same
  try {
    if (used.length) Object.assign(fields, edit.editFields());
  } catch (error) {
    return form.showError(error);
  }
  const fault = form.badSize(fields);
  if (fault) return form.showError(fault);
  if (fields.expand) for (const name of ["aspect_ratio", "width", "height"]) delete fields[name];
  generate(fields, used, edit.mask());
}

async function generate(fields, used, mask) {
  if (running) return;
  const kept = used.map(({ name, blob }) => ({ name, blob }));
  await finish({ made: Date.now(), job: null, fields, references: kept, mask, answer: null, images: [] });
}

/** Runs an entry's job to its end; one that the server has already is followed. */
async function finish(entry) {
  form.clearErrors();
  setComparing(false);
  busy(new AbortController());
  stage.showProgress(undefined, t("sent"));
  if (form.isNarrow()) $("stage").scrollIntoView();
  follow(entry.key);
  try {
    const job = { id: entry.job, fields: await withImages(entry.fields, entry.references, entry.mask) };
    const answer = await run(job, running.signal, (state) => report(entry, state));
    await keep(entry, answer);
    stage.showProgress(null, t("done", { seconds: answer.timings.total.toFixed(2) }));
  } catch (error) {
    if (entry.key) await store.remove(entry);
    failed(error);
  } finally {
    busy(null);
    follow(null);
    refresh();
  }
}

function report(entry, state) {
  if (state.name === "accepted") {
    store.put(Object.assign(entry, { job: state.id }));
    follow(entry.key);
  } else stage.showProgress(...stage.describe(state));
  if (state.preview) stage.showPreview(state.preview);
}

async function keep(entry, { images, ...answer }) {
  const mime = `image/${answer.output_format}`;
  const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  Object.assign(entry, { answer, images: images.map((text) => new Blob([bytes(text)], { type: mime })) });
  await store.put(entry);
  open(entry);
}

function failed(error) {
  if (shown.entry) open(shown.entry, shown.index);
  else stage.showNothing();
  if (running.signal.aborted || error.code === "cancelled") return stage.showProgress(null, t("cancelled"));
  stage.showProgress(null, t("not_generated"));
  if (error.code === "unauthorized") return refused();
  form.showError(error instanceof ApiError ? error : { message: error.message });
}

function busy(controller) {
  running = controller;
  $("go").disabled = controller !== null;
  $("cancel").hidden = controller === null;
}

/** Once for each server that is there: what it can do. */
let offered = null;
function serviceChanged() {
  stage.showService();
  const { capabilities } = service;
  if (!capabilities || capabilities === offered) return;
  const first = offered === null;
  offered = capabilities;
  form.offer();
  edit.render();
  $("demo").hidden = !capabilities.draws;
  $("demo").textContent = capabilities.draws ? t("demo", { model: capabilities.model }) : "";
  $("model-note").textContent = t("model_note", { model: capabilities.model, licence: capabilities.licence });
  chips();
  if (!first) return;
  const linked = fromLink();
  if (linked) form.write(linked);
  else if (capabilities.draws && !$("prompt").value) $("prompt").value = examplesFor(capabilities.model, 0)[0];
  takeUp();
}

/** The job that this page, or one that was closed, had begun; or what the server keeps, where nothing is here. */
async function takeUp() {
  const left = store.all().find((entry) => !entry.answer);
  if (left && !(await isFollowed(left.key)) && !running) return finish(left);
  restore(() => (shown.entry || running ? render() : open(store.all()[0])));
}

async function clear() {
  const finished = store.all().filter((entry) => entry.images.length);
  const n = finished.reduce((sum, entry) => sum + entry.images.length, 0);
  if (!(await ask(t("clear_question", { n }), t("delete")))) return;
  for (const entry of finished) {
    if (entry.job) drop(entry.job);
    await store.remove(entry);
  }
  if (!running) stage.showNothing();
  render();
}

function useKey() {
  const entered = $("key").value.trim();
  if (entered === key.get()) return; // a wrong one is not sent twice: the server answers each later
  key.set(entered);
  refresh();
}

function chips() {
  if (!service.capabilities) return;
  const examples = examplesFor(service.capabilities.model, references.references.list.length);
  const use = (text) => () => {
    $("prompt").value = text;
    $("prompt").focus();
  };
  $("chips").replaceChildren(...examples.map((text) => button(text, use(text), { lang: "en" })));
}

function listen() {
  form.listen(() => shown.entry?.answer.seeds[shown.index] ?? null);
  references.listen(() => shown.dragged);
  references.references.addEventListener("change", chips);
  references.references.addEventListener("change", edit.render);
  service.addEventListener("change", serviceChanged);
  service.addEventListener("strip", render);
  $("view").addEventListener("selected", render);
  $("form").onsubmit = (event) => {
    event.preventDefault();
    if (!running) submit();
  };
  $("prompt").onkeydown = (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) submit();
  };
  $("cancel").onclick = () => running?.abort();
  $("key").onchange = $("use-key").onclick = useKey;
  $("key").onkeydown = (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // no job is meant
    useKey();
  };
  $("compare").onclick = () => setComparing(!isComparing());
  $("save-all").onclick = () => saveAll(store.all().filter((entry) => entry.images.length));
  $("clear").onclick = clear;
}

await speak();
const entries = await store.open();
listen();
const newest = entries.find((entry) => entry.images.length);
if (newest) open(newest);
else {
  stage.showNothing();
  render();
}
setComparing(false);
refresh();
