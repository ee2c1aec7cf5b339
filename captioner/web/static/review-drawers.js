// The drawers of Review: change many texts at once, the table of terms, the history. One is open at a time; nothing
// behind it is locked, so that the pictures can be looked at meanwhile.

import { button, el } from "./dom.js";
import { marked, pointed } from "./review-words.js";

const TITLES = { bulk: "Change many at once", terms: "Terms", history: "History" };

export class Drawers {
  constructor(review) {
    this.review = review;
    this.shown = null;
    this.title = el("h2", { id: "review-drawer-title", tabindex: "-1" });
    this.content = el("div", { class: "content" });
    this.element = el(
      "aside",
      { class: "review-drawer", "aria-labelledby": "review-drawer-title", hidden: true },
      el("header", {}, this.title, button("Close (Esc)", { picture: "close", hideLabel: true, onclick: () => this.close() })),
      this.content,
    );
  }

  open(name) {
    if (this.shown === name) return this.close();
    if (!this.shown) this.before = document.activeElement;
    this.shown = name;
    this.title.textContent = TITLES[name];
    this.element.hidden = false;
    this.content.replaceChildren();
    this[name]();
    (this.content.querySelector("input:not([type=radio])") ?? this.title).focus();
  }

  close() {
    this.shown = null;
    this.element.hidden = true;
    const { before } = this;
    if (before?.isConnected && before !== document.body) before.focus({ preventScroll: true });
    else this.review.rest();
  }

  /** What lies behind has changed. */
  refresh() {
    if (this.shown === "bulk") this.preview();
    if (this.shown === "terms") this.listTerms();
    if (this.shown === "history") this.history();
  }

  // --- many at once --------------------------------------------------------------------------------------------------

  bulk() {
    const again = () => this.preview();
    const kinds = [["replace", "Replace"], ["prepend", "Prepend"], ["append", "Append"], ["delete", "Delete a term"]];
    this.kind = choice("review-kind", "What", kinds, this.kind?.value ?? "replace", () => (this.drawFields(), again()));
    this.fields = el("div", { class: "review-fields" });
    this.scope = choice("review-scope", "Where", this.scopes(), this.preferredScope(), again);
    this.said = el("p", { role: "status", "aria-live": "polite" });
    this.examples = el("ul", { class: "review-examples", "aria-label": "Preview" });
    this.apply = button("Change", { class: "primary", onclick: () => this.change() });
    this.content.append(
      el("form", { class: "review-bulk", onsubmit: (event) => (event.preventDefault(), this.change()) }, this.kind.element, this.fields, this.scope.element, this.said, this.apply),
      this.examples,
    );
    this.drawFields();
    this.preview();
  }

  scopes() {
    const { list, state, filter } = this.review;
    return [
      ["all", `All ${state?.total.toLocaleString() ?? ""}`],
      ["filtered", `Shown ${list.names.length.toLocaleString()}`, !filter.value.trim()],
      ["selected", `Selected ${list.selected.size.toLocaleString()}`, list.selected.size === 0],
    ];
  }

  preferredScope() {
    const { list, filter } = this.review;
    return list.selected.size ? "selected" : filter.value.trim() ? "filtered" : "all";
  }

  drawFields() {
    const kept = this.values ?? {};
    const field = (name, label, placeholder) => {
      const input = el("input", { id: `review-${name}`, value: kept[name] ?? "", placeholder, autocomplete: "off", spellcheck: "false", maxlength: 500 });
      input.addEventListener("input", () => this.review.later("preview", 200, () => this.preview()));
      return el("div", { class: "review-field" }, el("label", { for: input.id }, label), input);
    };
    const box = (name, label) => {
      const input = el("input", { type: "checkbox", id: `review-${name}`, checked: Boolean(kept[name]), onchange: () => this.preview() });
      return el("label", { for: input.id }, input, label);
    };
    const fields = {
      replace: () => [
        field("find", "Find", "oil painting"),
        field("replacement", "Replace by", "nothing: it is taken out"),
        el("div", { class: "review-choice" }, box("match_case", "Match case"), box("whole_words", "Whole words"), box("is_pattern", "Pattern (regex)")),
      ],
      prepend: () => [field("words", "Words before every text", "sks style")],
      append: () => [field("words", "Words after every text", "highly detailed")],
      delete: () => [field("term", "Comma term", "trending on artstation")],
    }[this.kind.value];
    this.fields.replaceChildren(...fields());
  }

  operation() {
    const value = (name) => this.fields.querySelector(`#review-${name}`);
    const given = { kind: this.kind.value };
    this.values ??= {};
    for (const name of ["find", "replacement", "words", "term"]) if (value(name)) given[name] = this.values[name] = value(name).value;
    for (const name of ["match_case", "whole_words", "is_pattern"]) if (value(name)) given[name] = this.values[name] = value(name).checked;
    return given;
  }

  asked() {
    const { list, filter } = this.review;
    const scope = this.scope.value;
    return {
      operation: this.operation(),
      filter: scope === "filtered" ? filter.value : "",
      names: scope === "selected" ? [...list.selected] : null,
    };
  }

  async preview() {
    this.scope.update(this.scopes());
    const asked = this.asked();
    const { find, words, term } = asked.operation;
    if (!(find || words?.trim() || term?.trim())) return this.tell("", []);
    const number = (this.previews = (this.previews ?? 0) + 1);
    let answer;
    try {
      answer = await this.review.api.json("review/api/preview", asked);
    } catch (error) {
      return number === this.previews && this.tell(error.message, [], true);
    }
    if (number !== this.previews || this.shown !== "bulk") return;
    if (answer.error) {
      const place = answer.error.start === null ? null : pointed(find ?? "", { start: answer.error.start, end: answer.error.start + 1 });
      return this.tell([place, answer.error.message], [], true);
    }
    const found = answer.matches === answer.pictures ? "" : `, ${answer.matches.toLocaleString()} places`;
    this.count = answer.pictures;
    this.tell(`${answer.pictures.toLocaleString()} of ${answer.of.toLocaleString()} texts change${found}`, answer.examples);
  }

  tell(words, examples, wrong = false) {
    this.said.className = wrong ? "review-wrong" : "soft number";
    this.said.replaceChildren(...[words].flat().filter(Boolean));
    if (!examples.length) this.count = 0;
    this.apply.disabled = !this.count;
    this.apply.textContent = this.count ? `Change ${texts(this.count)}` : "Change";
    this.examples.replaceChildren(
      ...examples.map(({ name, before, after }) => el("li", {}, el("span", { class: "name" }, name), ...marked(before, after))),
    );
  }

  async change() {
    if (this.apply.disabled) return;
    await this.review.editor.save();
    this.apply.disabled = true;
    try {
      const answer = await this.review.api.json("review/api/apply", this.asked());
      if (answer.error) return this.tell(answer.error.message, [], true);
      const left = answer.skipped.length ? `; ${answer.skipped.length} could not be changed` : "";
      this.review.api.toast(`${answer.title}: ${texts(answer.pictures)}${left}`, { undo: () => this.review.turn("undo") });
      await this.review.changed();
      await this.preview();
    } catch (error) {
      this.tell(error.message, [], true);
    }
  }

  /** From the table of terms: this one is taken out everywhere. */
  deleteTerm(term) {
    this.values = { ...this.values, term };
    this.kind = { value: "delete" };
    this.shown = null;
    this.open("bulk");
  }

  // --- terms ---------------------------------------------------------------------------------------------------------

  terms() {
    this.contains = el("input", { type: "search", "aria-label": "Find a term", placeholder: "Find a term", oninput: () => this.review.later("terms", 150, () => this.listTerms()) });
    this.table = el("table", { class: "review-table" });
    this.content.append(
      el("p", { class: "note" }, "A click shows the pictures that have a term, a second one those that do not, a third all again."),
      this.contains,
      this.table,
    );
    this.listTerms();
  }

  async listTerms() {
    let answer;
    try {
      answer = await this.review.api.json("review/api/terms", { contains: this.contains.value });
    } catch (error) {
      return this.review.api.toast(error.message);
    }
    const filter = this.review.filter.value.trim();
    this.table.replaceChildren(
      el("thead", { class: "visually-hidden" }, el("tr", {}, el("th", {}, "Term"), el("th", {}, "Texts"), el("th", {}, "Delete"))),
      el(
        "tbody",
        {},
        ...answer.terms.map(({ text, count }) => {
          const state = stateOf(text, filter);
          const made = button(text, { class: state === "without" ? "term excluded" : "term", "aria-pressed": String(state !== ""), "data-term": text });
          made.addEventListener("click", () => this.filterBy(text));
          if (state === "without") made.setAttribute("aria-label", `not ${text}`);
          return el(
            "tr",
            {},
            el("td", {}, made),
            el("td", { class: "number" }, count.toLocaleString()),
            el("td", {}, button(`Delete “${text}” everywhere`, { picture: "close", hideLabel: true, onclick: () => this.deleteTerm(text) })),
          );
        }),
      ),
    );
    if (!answer.terms.length) this.table.replaceChildren(el("tbody", {}, el("tr", {}, el("td", { class: "soft" }, "No terms."))));
  }

  async filterBy(term) {
    const [only, without] = [`term:${quoted(term)}`, `NOT term:${quoted(term)}`];
    const state = stateOf(term, this.review.filter.value.trim());
    await this.review.setFilter({ "": only, only: without, without: "" }[state]);
    await this.listTerms();
    this.table.querySelector(`[data-term="${CSS.escape(term)}"]`)?.focus({ preventScroll: true });
  }

  // --- history -------------------------------------------------------------------------------------------------------

  async history() {
    let answer;
    try {
      answer = await this.review.api.json("review/api/history");
    } catch (error) {
      return this.review.api.toast(error.message);
    }
    if (this.shown !== "history") return;
    const standing = answer.steps.filter((step) => step.stands);
    const list = el("ol", { class: "review-steps" });
    for (const step of answer.steps) {
      const many = standing.indexOf(step) + 1;
      const words = many === 1 ? "Undo" : `Undo ${many}`;
      list.append(
        el(
          "li",
          {},
          el("span", { class: step.stands ? "" : "gone" }, step.title),
          el("p", { class: "note" }, `${when(step.time)}${step.stands ? "" : " · taken back"}`),
          step.stands && button(words, { title: many === 1 ? "Take this back" : `Take back this and the ${many - 1} after it`, onclick: () => this.back(many) }),
        ),
      );
    }
    this.content.replaceChildren(
      el("p", { class: "note" }, "Every edit of this folder, the newest first. It outlives the server: what was saved can be taken back tomorrow, too."),
      this.review.state?.edited ? button("Compare before and after", { picture: "compare", onclick: () => this.compare() }) : "",
      answer.steps.length ? list : el("p", {}, "Nothing has been changed yet."),
    );
  }

  /** All texts that are not as they were, side by side with what they were. */
  async compare() {
    try {
      const { rows } = await this.review.api.json("review/api/edited");
      const side = (name, key) => ({ name, rows: rows.map((row) => ({ file: row.file, text: row[key] })) });
      this.review.api.open("compare", { left: side("Before", "before"), right: side("After", "after") });
    } catch (error) {
      this.review.api.toast(error.message);
    }
  }

  async back(many) {
    for (let step = 0; step < many; step += 1) await this.review.turn("undo");
    this.title.focus();
  }
}

/** Radio buttons in a row. */
function choice(name, legend, options, value, onchange) {
  const group = el("div", { class: "review-choice", role: "radiogroup", "aria-label": legend });
  const made = {
    value,
    element: el("div", { class: "review-group" }, el("span", { class: "review-legend", "aria-hidden": "true" }, legend), group),
    update(options) {
      if (options.find(([key, , disabled]) => key === made.value)?.[2]) made.value = options[0][0];
      const labels = options.map(([key, words, disabled]) => {
        const known = group.querySelector(`input[value="${key}"]`);
        if (known) {
          known.disabled = Boolean(disabled);
          known.checked = key === made.value;
          known.nextSibling.textContent = words;
          return known.parentNode;
        }
        const input = el("input", { type: "radio", name, value: key, checked: key === made.value, disabled: Boolean(disabled) });
        input.addEventListener("change", () => ((made.value = key), onchange()));
        return el("label", {}, input, el("span", {}, words));
      });
      if (!group.children.length) group.append(...labels);
    },
  };
  made.update(options);
  return made;
}

/** What a filter says of a term: "only" with it, "without" it, or nothing. */
function stateOf(term, filter) {
  if (filter === `term:${quoted(term)}`) return "only";
  return filter === `NOT term:${quoted(term)}` ? "without" : "";
}

function quoted(text) {
  return `"${text.replace(/["\\]/g, "\\$&")}"`;
}

function texts(count) {
  return `${count.toLocaleString()} ${count === 1 ? "text" : "texts"}`;
}

function when(seconds) {
  return new Date(seconds * 1000).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}
