// Elements of the page: finding, making and filling them. Nothing is ever parsed from a string.

export const $ = (id) => document.getElementById(id);

/**
 * Makes an element.
 * @param {string} tag
 * @param {object} attributes properties of the element; names with a dash, and `role`, are attributes.
 * @param {...(Node|string)} children null and false are left out.
 */
export function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== false));
  return made;
}

const PATHS = {
  die: "M7 3h10a4 4 0 0 1 4 4v10a4 4 0 0 1-4 4H7a4 4 0 0 1-4-4V7a4 4 0 0 1 4-4zM8 8h.01M16 8h.01M12 12h.01M8 16h.01M16 16h.01",
  open: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 7.5-2",
  locked: "M6 11h12v9H6zM8 11V8a4 4 0 0 1 8 0v3",
  zoom: "M11 5a6 6 0 1 0 0 12 6 6 0 0 0 0-12zM20 20l-4.5-4.5M11 8.500v5M8.500 11h5",
  close: "M6 6l12 12M18 6L6 18",
  earlier: "M15 5l-7 7 7 7",
  later: "M9 5l7 7-7 7",
  brush: "M4 20c3 0 5-1 5-4a3 3 0 0 1 3-3l8-8-1.500-1.500-8 8a3 3 0 0 1-3 3",
  grow: "M8 8h8v8H8zM3 3h4M3 3v4M21 3h-4M21 3v4M3 21h4M3 21v-4M21 21h-4M21 21v-4",
};

/** A drawn sign, for beside or instead of words. */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const drawn = document.createElementNS(space, "svg");
  const path = document.createElementNS(space, "path");
  path.setAttribute("d", PATHS[name]);
  drawn.append(path);
  drawn.setAttribute("viewBox", "0 0 24 24");
  drawn.setAttribute("class", "icon");
  drawn.setAttribute("aria-hidden", "true");
  return drawn;
}

/** A button with words on it. */
export function button(text, onclick, attributes = {}) {
  return node("button", { type: "button", onclick, ...attributes }, text);
}

/** A button with a sign on it; the words are its name. */
export function iconButton(name, label, onclick, attributes = {}) {
  return node("button", { type: "button", onclick, title: label, "aria-label": label, ...attributes }, icon(name));
}

/** Saves bytes as a file. */
export function save(blob, name) {
  const href = URL.createObjectURL(blob);
  node("a", { href, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000);
}
