// What is known of the server: its health, asked for again and again, and what it can do.

import { ApiError, call, key } from "./api.js";

const LOADING_MS = 1000;
const AWAY_MS = 2000;
const IDLE_MS = 15_000;
const CAN_SERVE = ["idle", "ready", "busy"];

/** status: the server's own, or "connecting", "away" (not reachable) or "locked" (a key is needed, or another one). */
export const service = Object.assign(new EventTarget(), {
  status: "connecting",
  health: {},
  capabilities: null,
  wrongKey: false,
});

let timer = null;
/** Whether the server may be another one than the one whose capabilities are known. */
let stale = true;

function set(status, health = {}) {
  Object.assign(service, { status, health });
  service.dispatchEvent(new Event("change"));
}

async function ask() {
  const headers = key.get() ? { Authorization: `Bearer ${key.get()}` } : {};
  let health;
  try {
    health = await (await fetch("health", { headers, cache: "no-store" })).json();
    if (!health.status) throw new Error("not this server's answer");
  } catch {
    stale = true;
    set("away");
    return AWAY_MS;
  }
  if (stale || health.model !== service.capabilities.model) {
    try {
      learn(await (await call("capabilities")).json());
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        service.wrongKey = key.get() !== "";
        set("locked");
        return IDLE_MS;
      }
    }
  }
  set(health.status, health);
  return stale || ["starting", "loading", "draining"].includes(health.status) ? LOADING_MS : IDLE_MS;
}

/** The same object for the same capabilities: who shows them need not do so again. */
function learn(capabilities) {
  stale = false;
  if (JSON.stringify(capabilities) !== JSON.stringify(service.capabilities)) service.capabilities = capabilities;
}

/** The key was refused: asks again whether there is one that is not. */
export function refused() {
  stale = true;
  return refresh();
}

/** Asks now, and then again by itself. */
export async function refresh() {
  clearTimeout(timer);
  const wait = await ask();
  clearTimeout(timer);
  timer = setTimeout(refresh, wait);
}

/** Whether this server's requests have a field. */
export const has = (mode, field) => service.capabilities?.fields?.[mode]?.includes(field) ?? false;

/**
 * Resolves when a job could be sent; calls `report` at each change until then.
 * @throws {DOMException} the signal has aborted it. @throws {Error} the model cannot be loaded.
 */
export function ready(signal, report) {
  return new Promise((resolve, reject) => {
    const ended = (settle, value) => {
      service.removeEventListener("change", check);
      signal.removeEventListener("abort", stopped);
      settle(value);
    };
    const stopped = () => ended(reject, new DOMException("cancelled", "AbortError"));
    const check = () => {
      if (CAN_SERVE.includes(service.status)) ended(resolve);
      else if (service.status === "failed") ended(reject, new Error(service.health.message ?? "failed"));
      else report(service);
    };
    if (signal.aborted) return stopped();
    signal.addEventListener("abort", stopped);
    service.addEventListener("change", check);
    refresh();
  });
}

document.addEventListener("visibilitychange", () => document.hidden || refresh());
window.addEventListener("online", refresh);
window.addEventListener("offline", refresh);
