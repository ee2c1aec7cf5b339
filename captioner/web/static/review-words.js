// How Review shows what became of a text, and where in a text something is wrong.

import { differences } from "./diff.js";
import { el } from "./dom.js";

/** Words that went and words that came are marked; screen readers name them. */
export function marked(before, after) {
  const kinds = { left: "del", right: "ins" };
  return differences(before, after).map(({ kind, text }) => (kinds[kind] ? el(kinds[kind], { class: "word" }, text) : document.createTextNode(text)));
}

/** A text with the place that an error speaks of marked. */
export function pointed(text, { start, end }) {
  if (start === null || start === undefined) return null;
  const place = text.slice(start, Math.max(end, start + 1)) || " ";
  return el("code", {}, text.slice(0, start), el("mark", {}, place), text.slice(Math.max(end, start + 1)));
}
