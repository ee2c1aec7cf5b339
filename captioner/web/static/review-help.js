// What the keys of Review do, and what can be written into its filter.

import { button, el } from "./dom.js";

const KEYS = [
  ["J", "next picture (or ↓)"],
  ["K", "picture before (or ↑)"],
  ["E", "into the text (or Enter)"],
  ["Tab", "take the term that is offered (↓ ↑ choose, Esc closes)"],
  ["Esc", "out of the text"],
  ["Ctrl+Enter", "save and go on"],
  ["Alt+↓ Alt+↑", "next, before: out of the text, too"],
  ["R", "ask the model again, by Caption's settings"],
  ["1 – 9", "take a candidate (Alt+1 – 9 within the text)"],
  ["Ctrl+Z", "undo"],
  ["Ctrl+Shift+Z", "redo"],
  ["X", "select or not (Shift+click: a range)"],
  ["/", "filter"],
  ["B", "change many at once"],
  ["T", "table of terms"],
  ["H", "history"],
  ["?", "these keys"],
];
const FILTERS = [
  ["cat \"oil painting\"", "both are in the text"],
  ["caption: name: term:", "in the text, in the name (with * and ?), a whole comma term"],
  ["tokens:>77 chars:<20", "longer or shorter than"],
  ["score:<-1.5", "what the model was unsure of"],
  ["is:empty is:failed is:edited", "no text, a failure, changed by you"],
  ["NOT a AND (b OR c)", "-a is NOT a; AND may be left out"],
];

/** The dialog, not yet shown. */
export function help() {
  const dialog = el(
    "dialog",
    { class: "review-dialog", "aria-labelledby": "review-keys" },
    el(
      "div",
      { class: "content" },
      el("div", { class: "row" }, el("h2", { class: "grow", id: "review-keys" }, "Keys"), button("Close", { picture: "close", hideLabel: true, onclick: () => dialog.close() })),
      el("dl", { class: "review-keys" }, ...KEYS.map(([keys, words]) => el("div", {}, el("dt", {}, el("kbd", {}, keys)), el("dd", {}, words)))),
      el("h2", {}, "Filter"),
      el("dl", { class: "review-keys wide" }, ...FILTERS.map(([text, words]) => el("div", {}, el("dt", {}, el("code", {}, text)), el("dd", {}, words)))),
    ),
  );
  return dialog;
}
