// The history of a browser that has none yet: the jobs of this key that the server still keeps.

import { call, key } from "./api.js";
import * as store from "./store.js";

/** The newest ones, at most. */
const MOST = 20;
const THIS_MACHINE = ["localhost", "127.0.0.1", "[::1]"];

/**
 * Fills an empty store; an entry has no references then, since the server keeps none.
 * Without a key it does so on the server's own machine alone: behind a proxy, others' jobs would look like this caller's.
 * @param {() => void} changed is called with each entry.
 */
export async function restore(changed) {
  if (store.all().length || !(key.get() || THIS_MACHINE.includes(location.hostname))) return;
  try {
    const { jobs } = await (await call(`jobs?limit=${MOST}`)).json();
    for (const job of jobs.filter(isHere)) {
      await store.put(await entryOf(job));
      changed();
    }
  } catch {
    // The server is away, or has deleted a job meanwhile: what was found until then stays.
  }
}

/** Whether a job's images are at this server: those of an object store are another's, and the page asks nobody else. */
const isHere = ({ status, result }) => status === "succeeded" && result.urls.every((url) => url.startsWith("/jobs/"));

async function entryOf({ id, mode, input, created_at, result: { urls, ...answer } }) {
  const images = [];
  for (const i of urls.keys()) images.push(await (await call(`jobs/${id}/images/${i}`)).blob());
  const made = Date.parse(created_at);
  const order = made + parseInt(id.slice(0, 8), 16) / 2 ** 32; // the same in another tab that does the same
  return { key: order, made, job: id, fields: { mode, ...input }, references: [], mask: null, answer, images };
}
