// Copying text, also where the browser has no clipboard for the page: over http, other than from this machine.

import { button, node } from "./dom.js";
import { t } from "./text.js";

/** Copies; gives whether it could. */
export async function copy(text) {
  if (navigator.clipboard) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not allowed here; the older way may be.
    }
  }
  const area = node("textarea", { value: text, className: "unseen", "aria-hidden": "true" });
  const focused = document.activeElement;
  document.body.append(area);
  area.select();
  const copied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!copied) showText(text);
  return copied;
}

/** The text, selected, to be copied by hand. */
function showText(text) {
  const area = node("textarea", { value: text, rows: 12, readOnly: true, "aria-label": t("copy_by_hand") });
  const dialog = node(
    "dialog",
    { className: "sheet", "aria-label": t("copy_by_hand") },
    node("p", {}, t("copy_by_hand")),
    area,
    button(t("close"), () => dialog.close()),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  area.select();
}
