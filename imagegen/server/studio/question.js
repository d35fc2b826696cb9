// A question before something that cannot be taken back.

import { button, node } from "./dom.js";
import { t } from "./text.js";

/** Asks; gives whether the answer was yes. */
export async function ask(question, yes) {
  const no = button(t("cancel"), () => dialog.close());
  const dialog = node(
    "dialog",
    { className: "sheet", "aria-label": question },
    node("p", {}, question),
    node(
      "div",
      { className: "tools" },
      no,
      button(yes, () => dialog.close("yes"), { className: "primary" }),
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
  no.focus();
  await new Promise((resolve) => dialog.addEventListener("close", resolve, { once: true }));
  dialog.remove();
  return dialog.returnValue === "yes";
}
