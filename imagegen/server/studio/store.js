// This visit's images, in the browser's own database: bounded, and kept over a reload.
//
// An entry is {key, made, job, fields, references: [{name, blob}], mask, answer, images: [Blob]}. `job` is its id at the
// server; one that still runs there has no answer and no images yet. Where the browser keeps no database (a private
// window), or has no room, the entries live as long as the page.

const MAX_ENTRIES = 60;
const MAX_BYTES = 300e6;

let database = null;
let entries = [];
/** Whether there was no room for the last entry. */
let full = false;

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

/** Opens the database; gives its entries, the newest first. */
export async function open() {
  try {
    const request = indexedDB.open("imagegen", 1);
    request.onupgradeneeded = () => request.result.createObjectStore("entries", { keyPath: "key" });
    database = await done(request);
    entries = (await done(database.transaction("entries").objectStore("entries").getAll())).reverse();
  } catch {
    database = null;
  }
  return entries;
}

/** Whether entries outlive the page. */
export const isKept = () => database !== null && !full;

export const all = () => entries;

/** Bytes of an entry's images and references. */
export const bytesOf = (entry) =>
  [...entry.images, ...entry.references.map((one) => one.blob), entry.mask].reduce(
    (sum, blob) => sum + (blob?.size ?? 0),
    0,
  );

/** Adds an entry or replaces it, and forgets the oldest ones beyond the bounds. */
export async function put(entry) {
  entry.key ??= entry.made + Math.random(); // in the order of their making, and no other tab's
  if (!entries.includes(entry)) entries = [entry, ...entries].sort((one, other) => other.key - one.key);
  full = !(await write((store) => store.put(entry)));
  let bytes = 0;
  const over = entries.filter((one, i) => (bytes += bytesOf(one)) > MAX_BYTES || i >= MAX_ENTRIES);
  for (const old of over.filter((one) => one !== entry)) await remove(old);
}

export async function remove(entry) {
  entries = entries.filter((one) => one !== entry);
  await write((store) => store.delete(entry.key));
}

/** A full disk must not cost the image that is on the screen: what cannot be written lives as long as the page. */
async function write(change) {
  if (!database) return false;
  try {
    const transaction = database.transaction("entries", "readwrite");
    const written = new Promise((resolve) => {
      transaction.oncomplete = () => resolve(true);
      transaction.onabort = () => resolve(false);
    });
    change(transaction.objectStore("entries"));
    return await written;
  } catch {
    return false;
  }
}

const urls = new WeakMap();

/** An address for an <img>; the same one for the same blob. */
export function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}
