// One job from its fields to its answer: it waits where the server is full, loading or away, and says what it waits for.

import { ApiError, Unreachable, call, events } from "./api.js";
import { ready } from "./service.js";

/** A Retry-After of more seconds is no queue that moves, but a limit that is used up. */
const MAX_WAIT = 120;
const AGAIN_MS = 1000;

const sleep = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    const stop = () => {
      clearTimeout(timer);
      reject(new DOMException("cancelled", "AbortError"));
    };
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
  });

/** For an Idempotency-Key: a job whose answer was lost is not made twice. */
const randomName = () => Array.from(crypto.getRandomValues(new Uint32Array(4)), (n) => n.toString(16)).join("-");

/** Cancels a job that runs, deletes one that is done; nobody waits for it. */
export const drop = (id) => call(`jobs/${id}`, { method: "DELETE" }).catch(() => {});

/**
 * Runs a job.
 * @param {{id: string|null, fields: object}} job `id` where the server has it already.
 * @param {AbortSignal} signal cancels it, also at the server.
 * @param {(state: object) => void} report gets what happens: {name, ...the event's fields}.
 * @returns {Promise<object>} the answer.
 */
export async function run(job, signal, report) {
  const sent = { id: job.id, seen: null, name: randomName() };
  for (;;) {
    try {
      return await attempt(sent, job.fields, signal, report);
    } catch (error) {
      if (signal.aborted && sent.id) drop(sent.id);
      if (signal.aborted) throw error;
      await recover(error, { sent, isNew: !job.id, signal, report });
    }
  }
}

async function attempt(sent, fields, signal, report) {
  if (!sent.id) {
    // Not aborted half-way: then nobody would know whether there is a job to cancel.
    const headers = { "Idempotency-Key": sent.name };
    const made = await (await call("jobs?previews=true", { method: "POST", body: fields, headers })).json();
    sent.id = made.id;
    report({ name: "accepted", id: made.id });
    signal.throwIfAborted();
    report({ name: "queued", place: made.place ?? 0 });
  }
  const headers = sent.seen === null ? {} : { "Last-Event-ID": sent.seen };
  const response = await call(`jobs/${sent.id}/events`, { headers, signal });
  for await (const { name, data, id } of events(response)) {
    sent.seen = id ?? sent.seen;
    if (name === "done") return data;
    if (name === "error") throw new ApiError(response.status, data, null);
    report({ name, ...data });
  }
  throw new Unreachable("the stream ended");
}

/** Waits until the job may be tried again; throws what waiting does not mend. */
async function recover(error, { sent, isNew, signal, report }) {
  const wait = error.retryAfter ?? 5;
  if (error instanceof Unreachable) {
    report({ name: "lost" });
    await sleep(AGAIN_MS, signal);
    await ready(signal, () => report({ name: "lost" }));
  } else if (["overloaded", "limit_exceeded"].includes(error.code) && error.status === 429 && wait <= MAX_WAIT) {
    for (let left = wait; left > 0; left--) {
      report({ name: error.code === "overloaded" ? "full" : "limited", seconds: left });
      await sleep(1000, signal);
    }
  } else if (error.code === "not_ready") {
    report({ name: "loading", stage: null });
    await sleep(AGAIN_MS, signal);
    await ready(signal, (state) => report({ name: "loading", stage: state.health.stage }));
    if (sent.id) Object.assign(sent, { id: null, seen: null, name: randomName() });
  } else if (error.code === "not_found" && sent.id && isNew) {
    // Its server was started anew and keeps jobs in memory alone: sent again, with the same seed.
    Object.assign(sent, { id: null, seen: null, name: randomName() });
  } else throw error;
}
