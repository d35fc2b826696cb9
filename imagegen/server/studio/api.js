// Calls of this server's API, and its errors.

const KEY = "imagegen-key";

/** An error of the API: its code, the field at fault and the message for the caller. */
export class ApiError extends Error {
  constructor(status, body, retryAfter) {
    super(body.message);
    Object.assign(this, { status, code: body.code, field: body.field, retryable: body.retryable, retryAfter });
  }
}

/** The server cannot be reached, or went away in the middle of an answer. */
export class Unreachable extends Error {}

let kept = "";

/** Kept for this tab alone, so that a reload does not ask again; a browser that keeps nothing has it as long as the page. */
export const key = {
  get: () => kept,
  set(value) {
    kept = value;
    try {
      sessionStorage.setItem(KEY, value);
    } catch {
      // The browser keeps nothing of this page.
    }
  },
};
try {
  kept = sessionStorage.getItem(KEY) ?? "";
} catch {
  // As above.
}

/**
 * Calls the API.
 * @returns {Promise<Response>} an answer whose status is a success.
 * @throws {ApiError|Unreachable|DOMException} the last one where `signal` has aborted it.
 */
export async function call(path, { method = "GET", body, headers = {}, signal } = {}) {
  const sent = { ...headers };
  if (key.get()) sent.Authorization = `Bearer ${key.get()}`;
  if (body) sent["Content-Type"] = "application/json";
  let response;
  try {
    const init = { method, headers: sent, body: body && JSON.stringify(body), signal };
    response = await fetch(path, { ...init, keepalive: method === "DELETE" }); // also where the page is being closed
  } catch (error) {
    throw error.name === "AbortError" ? error : new Unreachable(error.message);
  }
  if (response.ok) return response;
  const retryAfter = Number(response.headers.get("Retry-After")) || null;
  let error;
  try {
    ({ error } = await response.json());
  } catch {
    // Not this server's: a proxy in front of it says that it is away.
    throw new Unreachable(`HTTP ${response.status}`);
  }
  if (!error?.code) throw new Unreachable(`HTTP ${response.status}`);
  throw new ApiError(response.status, error, retryAfter);
}

/**
 * The events of a text/event-stream, until it ends.
 * @yields {{name: string, data: object, id: string|null}}
 * @throws {Unreachable} the connection is lost.
 */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new Unreachable(error.message);
    }
    if (part.done) return;
    const blocks = (rest + part.value).split(/\r?\n\r?\n/);
    rest = blocks.pop();
    for (const block of blocks) {
      const line = (name) => new RegExp(`^${name}: ?(.*)$`, "m").exec(block)?.[1] ?? null;
      const data = line("data");
      if (data !== null) yield { name: line("event"), data: JSON.parse(data), id: line("id") };
    }
  }
}
