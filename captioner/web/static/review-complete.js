// Terms that are offered while a text is typed: those of the folder that begin as what stands after the last comma, then
// those of which a later word does; last those of a list that the server was started with.

import { el, isComposing } from "./dom.js";

const MOST = 8; // offered at a time
const KNOWN = 50_000; // terms that are looked through, the most used ones
const LONGEST = 60; // characters of a term: what is longer is a sentence
const GAP = 4; // pixels between the line that is typed and the list
const COMBOBOX = { role: "combobox", "aria-autocomplete": "list", "aria-haspopup": "listbox", "aria-expanded": "true", "aria-controls": "review-completions" };

export class Complete {
  constructor(editor) {
    this.editor = editor;
    this.terms = [];
    this.offered = [];
    this.chosen = -1;
    this.caret = -1; // where something was typed last; none where nothing is to be offered
    this.element = el("ul", { class: "review-completions", id: "review-completions", role: "listbox", "aria-label": "Terms", hidden: true });
    this.element.addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays in the text
    this.area = editor.area;
    this.area.addEventListener("keydown", (event) => this.key(event));
    this.area.addEventListener("blur", () => this.close());
    document.addEventListener("selectionchange", () => this.element.hidden || this.area.selectionEnd === this.caret || this.close());
    document.addEventListener("scroll", () => this.element.hidden || this.place(), true);
  }

  /** Something was typed. */
  typed() {
    if (this.group !== this.editor.group) this.learn();
    this.caret = this.area.selectionEnd;
    this.offer();
  }

  /** The terms as they are by now: asked for once for each picture that is typed into. */
  async learn() {
    this.group = this.editor.group;
    try {
      await this.editor.saving; // of the picture before
      const { terms } = await this.editor.api.json("review/api/terms", { most: KNOWN });
      this.listed ??= (await this.editor.api.json("review/api/tags")).tags.map((text) => ({ text, key: keyOf(text) }));
      const used = terms.filter(({ text }) => text.length <= LONGEST).map((term) => ({ ...term, key: keyOf(term.text) }));
      const keys = new Set(used.map(({ key }) => key));
      this.terms = [...used, ...this.listed.filter(({ key }) => !keys.has(key))];
    } catch {
      return; // nothing new is offered, and saving says what is wrong
    }
    if (this.caret === this.area.selectionEnd) this.offer();
  }

  offer() {
    const begun = keyOf(begunIn(this.area));
    const before = this.element.hidden ? null : this.offered[0];
    const like = begun ? [({ key }) => key.startsWith(begun) && key !== begun, ({ key }) => key.includes(` ${begun}`) && !key.startsWith(begun)] : [];
    this.offered = like.flatMap((isLike) => first(this.terms, isLike)).slice(0, MOST);
    if (!this.offered.length) return this.hide();
    this.element.replaceChildren(...this.offered.map((term, index) => this.option(term, index)));
    this.element.hidden = false;
    for (const [name, value] of Object.entries(COMBOBOX)) this.area.setAttribute(name, value);
    this.choose(-1);
    this.place();
    if (before?.key !== this.offered[0].key) this.editor.api.say(`Tab takes ${this.offered[0].text}`);
  }

  option({ text, count }, index) {
    const said = { role: "option", id: `review-completion-${index}`, onclick: () => this.take(index) };
    return el("li", said, el("bdi", {}, text), el("span", { class: "number" }, count?.toLocaleString() ?? ""));
  }

  close() {
    this.caret = -1;
    this.hide();
  }

  hide() {
    this.element.hidden = true;
    for (const name of [...Object.keys(COMBOBOX), "aria-activedescendant"]) this.area.removeAttribute(name);
  }

  /** Below the line that is typed, or above it where there is more room: a phone's keyboard leaves little. */
  place() {
    const box = this.area.getBoundingClientRect();
    const line = lineOf(this.area, this.caret);
    const top = box.top + line.offsetTop - this.area.scrollTop - GAP;
    const bottom = top + line.offsetHeight + 2 * GAP;
    const { offsetTop, height } = window.visualViewport;
    const [above, below] = [top - offsetTop, offsetTop + height - bottom];
    const wanted = this.element.scrollHeight + 2; // its border
    const isBelow = wanted <= below || above <= below;
    const high = Math.min(wanted, Math.max(isBelow ? below : above, 0));
    const places = { left: box.left, width: box.width, maxHeight: high, top: isBelow ? bottom : top - high };
    for (const [name, pixels] of Object.entries(places)) this.element.style[name] = `${pixels}px`;
  }

  key(event) {
    if (this.element.hidden || isComposing(event) || event.shiftKey) return;
    if (event.altKey || event.ctrlKey || event.metaKey) return this.close();
    const last = this.offered.length - 1;
    const action = {
      ArrowDown: () => this.choose(this.chosen < last ? this.chosen + 1 : 0),
      ArrowUp: () => this.choose(this.chosen > 0 ? this.chosen - 1 : last),
      Tab: () => this.take(Math.max(0, this.chosen)),
      Enter: this.chosen >= 0 && (() => this.take(this.chosen)),
      Escape: () => this.close(),
    }[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  }

  choose(index) {
    this.chosen = index;
    [...this.element.children].forEach((option, at) => option.setAttribute("aria-selected", String(at === index)));
    if (index < 0) return this.area.removeAttribute("aria-activedescendant");
    this.area.setAttribute("aria-activedescendant", `review-completion-${index}`);
    this.element.children[index].scrollIntoView({ block: "nearest" });
  }

  /** As if it had been typed, so that the browser's own undo takes it back. */
  take(index) {
    this.area.setSelectionRange(this.caret - begunIn(this.area).length, this.caret);
    document.execCommand("insertText", false, this.offered[index].text);
    this.close(); // though another may begin as this one
  }
}

/** What terms compare by: neither case nor the kind of space matters. */
const keyOf = (text) => text.toLowerCase().replace(/\s+/g, " ");

/** The beginning of a term, two letters or more, that the caret stands behind; nothing where more follows before a comma. */
function begunIn({ value, selectionStart, selectionEnd }) {
  const before = value.slice(0, selectionStart);
  const begun = before.slice(Math.max(before.lastIndexOf(","), before.lastIndexOf("\n")) + 1).trimStart();
  const [rest] = /^[^,\n]*/.exec(value.slice(selectionEnd));
  return selectionStart === selectionEnd && begun.trim().length >= 2 && !rest.trim() ? begun : "";
}

/** The first few that are like this; no more are looked at. */
function first(all, isLike) {
  const found = [];
  for (const one of all) if (isLike(one) && found.push(one) === MOST) break;
  return found;
}

/** Where the line of a character stands in an area, from the top of its text. */
function lineOf(area, index) {
  const mark = el("span", {}, "\u200b");
  const copy = el("div", { class: "review-copy", "aria-hidden": "true" }, area.value.slice(0, index), mark);
  const { font, padding, direction } = getComputedStyle(area);
  Object.assign(copy.style, { font, padding, direction, width: `${area.clientWidth}px` });
  area.parentNode.append(copy);
  const { offsetTop, offsetHeight } = mark;
  copy.remove();
  return { offsetTop, offsetHeight };
}
