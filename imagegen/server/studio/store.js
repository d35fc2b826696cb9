// This visit's images, in the browser's own database: bounded, and kept over a reload.
//
// An entry is {key, made, job, fields, references: [{name, blob}], mask, answer, images: [Blob]}. `job` is its id at the
// server; one that still runs there has no answer and no images yet. Where the browser keeps no database (a private window), the
// entries live as long as the page.

const MAX_ENTRIES = 60;
const MAX_BYTES = 300e6;

let database = null;
let entries = [];

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const table = () => database.transaction("entries", "readwrite").objectStore("entries");

/** Opens the database; gives its entries, the newest first. */
export async function open() {
  try {
    const request = indexedDB.open("imagegen", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("entries", { keyPath: "key" });
    database = await done(request);
    entries = (await done(table().getAll())).reverse();
  } catch {
    database = null;
  }
  return entries;
}

/** Whether entries outlive the page. */
export const isKept = () => database !== null;

export const all = () => entries;

/** Bytes of an entry's images and references. */
export const bytesOf = (entry) =>
  [...entry.images, ...entry.references.map((one) => one.blob), entry.mask].reduce(
    (sum, blob) => sum + (blob?.size ?? 0),
    0,
  );

/** Adds an entry or replaces it, and forgets the oldest ones beyond the bounds. */
export async function put(entry) {
  if (!entry.key) {
    entry.key = Date.now() + Math.random(); // in the order of their making, and no other tab's
    entries.unshift(entry);
  }
  await write((store) => store.put(entry));
  let bytes = 0;
  const over = entries.filter((one, i) => (bytes += bytesOf(one)) > MAX_BYTES || i >= MAX_ENTRIES);
  for (const old of over.filter((one) => one !== entry)) await remove(old);
}

export async function remove(entry) {
  entries = entries.filter((one) => one !== entry);
  await write((store) => store.delete(entry.key));
}

export async function clear() {
  entries = [];
  await write((store) => store.clear());
}

/** A full disk must not cost the image that is on the screen: what cannot be written lives as long as the page. */
async function write(change) {
  if (!database) return;
  try {
    await done(change(table()));
  } catch {
    database = null;
  }
}

const urls = new WeakMap();

/** An address for an <img>; the same one for the same blob. */
export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}
