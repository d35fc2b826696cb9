// One job from its fields to its answer: it waits where the server is full, loading or away, and says what it waits for.

import { ApiError, Unreachable, call, events } from "./api.js";
import { ready, service } from "./service.js";

/** A Retry-After of more seconds is no queue that moves, but a limit that is used up. */
const MAX_WAIT = 120;

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

/**
 * Runs a job.
 * @param {object} job `fields` of the request; `id` where the server has it already.
 * @param {AbortSignal} signal cancels it, also at the server.
 * @param {(state: object) => void} report gets what happens: {name, ...the event's fields}.
 * @returns {Promise<object>} the answer.
 */
export async function run(job, signal, report) {
  for (;;) {
    try {
      return await attempt(job, signal, report);
    } catch (error) {
      if (signal.aborted) throw error;
      if (error instanceof Unreachable) {
        report({ name: "lost" });
        await sleep(1000, signal);
        await ready(signal, () => report({ name: "lost" }));
      } else if (error instanceof ApiError && error.code === "overloaded" && (error.retryAfter ?? 5) <= MAX_WAIT) {
        for (let left = error.retryAfter ?? 5; left > 0; left--) {
          report({ name: "full", seconds: left });
          await sleep(1000, signal);
        }
      } else if (error instanceof ApiError && error.code === "not_ready") {
        await ready(signal, (state) => report({ name: "loading", stage: state.health.stage, status: state.status }));
      } else throw error;
    }
  }
}

async function attempt(job, signal, report) {
  if (!service.capabilities?.jobs) return stream(job, signal, report);
  if (!job.id) {
    const made = await (await call("jobs", { method: "POST", body: job.fields, signal })).json();
    job.id = made.id;
    report({ name: "accepted", id: made.id });
    report({ name: "queued", place: made.place ?? 0 });
  }
  const headers = job.seen ? { "Last-Event-ID": job.seen } : {};
  const cancel = () => call(`jobs/${job.id}`, { method: "DELETE" }).catch(() => {});
  signal.addEventListener("abort", cancel);
  try {
    const response = await call(`jobs/${job.id}/events?previews=true`, { headers, signal });
    return await follow(response, report, (id) => (job.seen = id ?? job.seen));
  } finally {
    signal.removeEventListener("abort", cancel);
  }
}

/** A job of an open connection, for a server without jobs: one that is lost is sent again, and has the same seed. */
async function stream(job, signal, report) {
  const { mode, ...body } = job.fields;
  const headers = { Accept: "text/event-stream" };
  return follow(await call(`${mode}?previews=true`, { method: "POST", body, headers, signal }), report, () => {});
}

async function follow(response, report, seen) {
  for await (const { name, data, id } of events(response)) {
    seen(id);
    if (name === "done") return data;
    if (name === "error") throw new ApiError(response.status, data.error ?? data, null);
    report({ name, ...data });
  }
  throw new Unreachable("the stream ended");
}
