// The page's words, in the browser's language where there is a table for it; English stands in for what is missing.

import english from "./strings/en.js";

const TABLES = { de: () => import("./strings/de.js"), es: () => import("./strings/es.js") };
let table = english;
let plurals = new Intl.PluralRules("en");

/** Chooses the language, and fills in the words of the document. */
export async function speak(languages = navigator.languages) {
  const wanted = languages.map((language) => language.slice(0, 2).toLowerCase());
  const language = wanted.find((name) => name === "en" || name in TABLES) ?? "en";
  if (language !== "en") {
    table = { ...english, ...(await TABLES[language]()).default };
    plurals = new Intl.PluralRules(language);
  }
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const [data, attribute] of [
    ["t-label", "aria-label"],
    ["t-title", "title"],
    ["t-placeholder", "placeholder"],
  ]) {
    for (const element of document.querySelectorAll(`[data-${data}]`)) {
      element.setAttribute(attribute, t(element.getAttribute(`data-${data}`)));
    }
  }
}

/**
 * The words for a key.
 * @param {string} key of the table; a pair of words there is singular and plural, chosen by `values.n`.
 * @param {object} values for the {names} in it.
 */
export function t(key, values = {}) {
  const entry = table[key] ?? english[key];
  const words = Array.isArray(entry) ? entry[plurals.select(values.n) === "one" ? 0 : 1] : entry;
  return words.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}
