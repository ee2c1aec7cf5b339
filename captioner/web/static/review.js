// Review: a folder's pictures and their texts, to be corrected by the keyboard. Everything that is typed saves itself.
//
// `Review` holds what is shown; the list is review-list.js, the drawers (many at once, terms, history) are
// review-drawers.js, and captioning the whole folder is review-run.js.

import { button, el, icon } from "./dom.js";
import { Drawers } from "./review-drawers.js";
import { List, Pictures } from "./review-list.js";
import { Run } from "./review-run.js";
import { marked, pointed } from "./review-words.js";

const SAVE_AFTER = 700; // milliseconds without a key
const COUNT_AFTER = 150;
const LIMIT = 77; // tokens that CLIP reads
const CANDIDATES = 5; // asked for by R
const KEYS = [
  ["J", "next picture (or ↓)"],
  ["K", "picture before (or ↑)"],
  ["E", "into the text (or Enter)"],
  ["Esc", "out of the text"],
  ["Ctrl+Enter", "save and go on"],
  ["Alt+↓ Alt+↑", "next, before: out of the text, too"],
  ["R", "ask the model again"],
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

export async function mount(element, api) {
  if (!document.querySelector("link[data-review]")) {
    const sheet = el("link", { rel: "stylesheet", href: new URL("./review.css", import.meta.url), "data-review": true });
    const loaded = new Promise((resolve) => ["load", "error"].forEach((name) => sheet.addEventListener(name, resolve)));
    document.head.append(sheet);
    await loaded;
  }
  if (!api.settings?.root) {
    element.replaceChildren(
      el(
        "div",
        { class: "notice" },
        el("h1", {}, "Review"),
        el("p", {}, "Here the texts of a folder of pictures are corrected. This server was started without one:"),
        el("pre", {}, "captioner serve photos"),
      ),
    );
    return {};
  }
  const review = new Review(element, api);
  await review.open();
  return { shown: (state) => review.shown(state), hidden: () => review.hidden() };
}

class Review {
  constructor(element, api) {
    this.api = api;
    this.current = null; // the whole row, as the server told it
    this.index = -1;
    this.group = ""; // what is typed into one text at a time is taken back together
    this.saving = Promise.resolve();
    this.saves = 0;
    this.list = new List(api, {
      onopen: (index) => this.go(index),
      onselect: () => this.drawSelection(),
    });
    this.large = new Pictures(api, "large", 8);
    this.drawers = new Drawers(this);
    this.run = new Run(this);
    this.build(element);
    this.onkey = (event) => this.key(event);
    window.addEventListener("beforeunload", (event) => this.isDirty() && (this.save(), event.preventDefault()));
    document.addEventListener("visibilitychange", () => document.hidden && this.save());
  }

  // --- what is seen --------------------------------------------------------------------------------------------------

  build(element) {
    this.filter = el("input", {
      type: "search",
      "aria-label": "Filter",
      placeholder: "cat tokens:>60 NOT blurry",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      oninput: () => this.later("filter", 250, () => this.view()),
      onkeydown: (event) => {
        if (event.key === "Enter") this.later("filter", 0, () => this.view());
        if (event.key === "Escape" && this.filter.value) (event.stopPropagation(), this.setFilter(""));
        else if (event.key === "Escape" || event.key === "ArrowDown") (event.preventDefault(), this.list.element.focus());
      },
    });
    this.wrong = el("div", { class: "review-wrong", id: "review-wrong", role: "alert", hidden: true });
    this.sort = el(
      "select",
      { "aria-label": "Sort", onchange: () => this.view({ first: true }) },
      ...[
        ["name", "by name"],
        ["score", "worst score first"],
        ["score-", "best score first"],
        ["tokens-", "longest first (tokens)"],
        ["chars", "shortest first"],
      ].map(([value, label]) => el("option", { value }, label)),
    );
    this.chips = el("div", { class: "row review-chips", role: "group", "aria-label": "Quick filters" });
    this.saved = el("span", { class: "review-saved", role: "status" });
    this.undoButton = button("Undo", { picture: "undo", hideLabel: true, onclick: () => this.turn("undo") });
    this.redoButton = button("Redo", { picture: "redo", hideLabel: true, onclick: () => this.turn("redo") });
    this.place = el("span", { class: "name" });
    this.figure = el("figure", {});
    this.area = el("textarea", {
      id: "review-area",
      "aria-label": "Text",
      spellcheck: "true",
      oninput: () => this.typed(),
      onblur: () => this.save(),
    });
    this.problem = el("div", { class: "review-problem", role: "alert", hidden: true });
    this.meter = el("span", {});
    this.count = el("span", { class: "number" });
    this.countRow = el("div", { class: "review-count" }, this.count, el("span", { class: "meter", "aria-hidden": "true" }, this.meter), (this.chars = el("span", { class: "number" })));
    this.cut = el("p", { class: "review-cut", hidden: true });
    this.was = el("p", { class: "review-was" });
    this.wasBox = el("section", { hidden: true, "aria-label": "What was changed" }, el("h3", {}, "What was changed", button("Bring back", { picture: "undo", quiet: true, onclick: () => this.restore() })), this.was);
    this.candidates = el("ol", { class: "review-candidates" });
    this.model = el(
      "select",
      { "aria-label": "Model", hidden: modelsOf(this.api).length < 2 },
      ...modelsOf(this.api).map((name) => el("option", { value: name }, name)),
    );
    this.askButton = button("Ask again", { picture: "retry", title: "Ask the model again (R)", onclick: () => this.ask() });
    this.places = el("p", { class: "note" });
    this.side = el(
      "div",
      { class: "review-side" },
      el("header", {}, el("h2", {}, "Pictures"), button("Close the list", { picture: "close", hideLabel: true, onclick: () => this.showList() })),
      this.list.element,
      (this.picked = el("div", { class: "review-picked", hidden: true })),
    );
    this.element = el(
      "div",
      { class: "review" },
      el("h1", { class: "visually-hidden" }, "Review"),
      el(
        "div",
        { class: "review-head" },
        el(
          "div",
          { class: "first" },
          el("div", { class: "review-filter" }, icon("search"), this.filter, el("kbd", { "aria-hidden": "true" }, "/")),
          this.sort,
          button("Change many", { picture: "pencil", title: "Change many at once (B)", onclick: () => this.drawers.open("bulk") }),
          button("Terms", { picture: "tags", title: "Table of terms (T)", onclick: () => this.drawers.open("terms") }),
          button("Caption", { picture: "picture", title: "Caption the folder", onclick: () => this.run.ask() }),
          this.undoButton,
          this.redoButton,
          button("History", { picture: "history", hideLabel: true, onclick: () => this.drawers.open("history") }),
          button("Keys (?)", { picture: "help", hideLabel: true, class: "keys", onclick: () => this.help() }),
        ),
        this.wrong,
        el("div", { class: "second" }, this.chips, this.saved),
        this.run.element,
      ),
      el(
        "div",
        { class: "review-body" },
        this.side,
        el(
          "div",
          { class: "review-picture" },
          this.figure,
          el(
            "div",
            { class: "review-step" },
            button("Pictures", { picture: "list", hideLabel: true, class: "show-list", onclick: () => this.showList() }),
            button("Picture before (K)", { picture: "left", hideLabel: true, onclick: () => this.step(-1) }),
            this.place,
            button("Next picture (J)", { picture: "right", hideLabel: true, onclick: () => this.step(1) }),
          ),
        ),
        el(
          "div",
          { class: "review-text" },
          this.problem,
          this.area,
          this.countRow,
          this.cut,
          this.wasBox,
          el("section", { "aria-label": "Candidates" }, el("h3", {}, "Candidates", el("span", { class: "row" }, this.model, this.askButton)), this.candidates),
          this.places,
          el(
            "div",
            { class: "review-keys-hint", "aria-hidden": "true" },
            ...[["Ctrl+Enter", "save and go on"], ["J K", "move"], ["?", "all keys"]].map(([keys, words]) => el("span", {}, el("kbd", {}, keys), ` ${words}`)),
          ),
        ),
      ),
      this.drawers.element,
    );
    element.replaceChildren(this.element);
  }

  async open() {
    document.addEventListener("keydown", this.onkey);
    this.say("saved", "Opening the folder …", "");
    await this.view();
    this.settle();
  }

  shown(state) {
    document.addEventListener("keydown", this.onkey);
    this.list.draw();
    if (typeof state?.filter === "string") this.setFilter(state.filter);
  }

  hidden() {
    document.removeEventListener("keydown", this.onkey);
    this.save();
  }

  later(name, milliseconds, action) {
    this.timers ??= {};
    clearTimeout(this.timers[name]);
    this.timers[name] = setTimeout(action, milliseconds);
  }

  say(kind, words, picture, title = "") {
    this.saved.className = `review-saved ${kind === "wrong" ? "wrong" : ""}`;
    this.saved.title = title;
    if (this.saved.dataset.words !== words) this.saved.replaceChildren(...(picture ? [icon(picture)] : []), el("span", {}, words));
    this.saved.dataset.words = words;
  }

  // --- which pictures ------------------------------------------------------------------------------------------------

  /** The pictures of the filter, in order; the current one stays if it is among them (or `first`: the first is shown). */
  async view({ first = false } = {}) {
    const asked = (this.viewing = {});
    const [sort, back] = this.sort.value.split("-");
    let answer;
    try {
      answer = await this.api.json("review/api/view", { filter: this.filter.value, sort, descending: back !== undefined });
    } catch (error) {
      if (this.viewing === asked) this.say("wrong", error.message, "stop");
      return;
    }
    if (this.viewing !== asked) return; // another has been asked for meanwhile
    this.showWrong(answer.error);
    if (answer.error) return;
    this.list.show(answer.names);
    this.draw(answer.state);
    const index = this.current && !first ? this.list.indexOf(this.current.name) : -1;
    if (index >= 0) this.mark(index);
    else await this.go(0);
    if (document.activeElement === this.filter) this.api.say(`${answer.names.length} pictures`);
  }

  setFilter(text) {
    this.filter.value = text;
    return this.view();
  }

  showWrong(error) {
    this.wrong.hidden = !error;
    this.filter.setAttribute("aria-invalid", error ? "true" : "false");
    if (!error) return this.filter.removeAttribute("aria-describedby");
    this.filter.setAttribute("aria-describedby", "review-wrong");
    this.wrong.replaceChildren(pointed(this.filter.value, error), error.message);
  }

  /** The numbers in the head. */
  draw(state) {
    this.state = state;
    const filter = this.filter.value.trim();
    const chip = (words, number, text) =>
      button(words, { class: "chip", "aria-pressed": String(filter === text), onclick: () => this.setFilter(filter === text ? "" : text) });
    const chips = [["All", state.total, ""], ["No text", state.empty, "is:empty"], ["Failed", state.failed, "is:failed"], ["Edited", state.edited, "is:edited"]];
    this.chips.replaceChildren(
      ...chips
        .filter(([, number, text]) => number > 0 || text === "" || filter === text)
        .map(([words, number, text]) => {
          const made = chip(words, number, text);
          made.append(el("span", { class: "number" }, number.toLocaleString()));
          return made;
        }),
      chip("Over 77 tokens", null, "tokens:>77"),
    );
    if (filter) this.chips.append(el("span", { class: "soft number" }, `${this.list.names.length.toLocaleString()} shown`));
    for (const [made, title, name] of [[this.undoButton, state.undo, "Undo"], [this.redoButton, state.redo, "Redo"]]) {
      made.setAttribute("aria-disabled", String(!title));
      made.title = title ? `${name}: ${title}` : `Nothing to ${name.toLowerCase()}`;
      made.setAttribute("aria-label", made.title);
    }
    if (state.stuck) {
      this.say("wrong", `Not in its file yet: ${state.stuck}`, "stop");
      this.saved.append(button("Try again", { quiet: true, onclick: () => this.retry() }));
      this.saved.dataset.words = "";
    } else if (state.unwritten) {
      this.say("saved", `Saved · writing ${state.unwritten.toLocaleString()} files`, "check", "Safe in the journal; the files follow.");
      this.later("state", 1000, () => this.settle());
    } else if (!this.isDirty()) this.say("saved", "Saved", "check", "All is in its files.");
  }

  async settle() {
    try {
      this.draw(await this.api.json("review/api/state"));
    } catch (error) {
      this.say("wrong", error.message, "stop");
    }
  }

  async retry() {
    this.draw((await this.api.json("review/api/retry", {})).state);
  }

  /** Many texts have changed: everything that is shown is asked for anew. */
  async changed(state) {
    this.list.refresh();
    if (this.filter.value.trim() || this.sort.value !== "name") await this.view();
    else this.draw(state);
    if (this.current) await this.load(this.current.name);
  }

  // --- one picture ---------------------------------------------------------------------------------------------------

  async go(index, { focus = null } = {}) {
    this.save();
    if (index < 0 || index >= this.list.names.length) {
      if (!this.list.names.length) this.nothing();
      return;
    }
    this.mark(index);
    const name = this.list.names[index];
    this.group = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
    this.show(name);
    this.element.classList.remove("listing");
    if (focus) focus.focus({ preventScroll: true });
    await this.load(name);
    for (const next of [1, 2]) if (index + next < this.list.names.length) this.large.get(this.list.names[index + next]).catch(() => {}); // it is told when it is opened
  }

  mark(index) {
    this.index = index;
    this.list.mark(index);
    this.place.textContent = `${this.list.names[index]} · ${(index + 1).toLocaleString()} of ${this.list.names.length.toLocaleString()}`;
  }

  step(by) {
    const index = this.index + by;
    if (index < 0 || index >= this.list.names.length) return this.api.say(by > 0 ? "The last picture" : "The first picture");
    return this.go(index, { focus: document.activeElement === this.area ? this.area : null });
  }

  nothing() {
    this.index = -1;
    this.current = null;
    this.place.textContent = "";
    this.area.value = this.area.placeholder = "";
    this.area.disabled = true;
    this.drawTokens(0, null);
    this.figure.replaceChildren(el("p", { class: "soft" }, this.filter.value ? "No picture is like that." : "There are no pictures in this folder."));
    this.candidates.replaceChildren();
    for (const part of [this.wasBox, this.problem, this.cut]) part.hidden = true;
    this.places.textContent = "";
  }

  /** The picture: the small one at once, the large one when it is there. */
  async show(name) {
    const picture = el("img", { alt: name, class: "coming" });
    const small = this.list.pictures.kept.get(name)?.address;
    if (small) picture.src = small;
    this.figure.replaceChildren(picture);
    try {
      const address = await this.large.get(name);
      if (!picture.isConnected) return;
      picture.src = address;
      picture.classList.remove("coming");
    } catch (error) {
      if (picture.isConnected) this.figure.replaceChildren(el("p", { class: "warning" }, error.message));
    }
  }

  /**
   * What the server knows of it. Until a text is known nothing can be typed: it would take the text's place. What is
   * typed into a text that the list knew already stays, and is compared with the text that was seen.
   */
  async load(name) {
    const known = this.list.rows.get(name);
    if (this.current?.name !== name) this.fill({ name, text: known?.text ?? "", tokens: known?.tokens, problem: known?.problem, candidates: [], places: [], isKnown: known !== undefined, loading: true });
    try {
      await this.saving;
      const saves = this.saves;
      const row = await this.api.json("review/api/row", { name });
      if (this.list.names[this.index] !== name) return;
      if (this.saves !== saves) return this.load(name); // what has come may be the text from before
      this.list.put(row);
      const seen = this.current;
      if (seen?.isKnown && this.isDirty()) this.fill({ ...row, text: seen.text }, this.area.value);
      else this.fill(row);
    } catch (error) {
      this.api.toast(error.message);
    }
  }

  fill(row, typed = null) {
    const same = this.current?.name === row.name;
    this.current = { isKnown: true, ...row };
    this.area.disabled = false;
    this.area.readOnly = !this.current.isKnown;
    const value = typed ?? row.text ?? "";
    if (this.area.value !== value || !same) this.area.value = value;
    this.area.placeholder = row.loading ? "" : "No text yet. Write one, or press R to ask the model.";
    this.drawProblem(row.problem);
    this.drawTokens(row.tokens ?? 0, null);
    this.drawWas();
    if (row.loading) return;
    this.drawCandidates(row.candidates);
    this.places.textContent = row.places.length ? `Kept in ${row.places.join(" and ")}.` : "";
    this.countTokens();
  }

  drawProblem(problem) {
    this.problem.hidden = !problem;
    this.problem.replaceChildren(el("span", {}, problem ?? ""), button("Try again", { picture: "retry", onclick: () => this.ask(true) }));
  }

  drawWas() {
    const { original } = this.current;
    const now = this.area.value.trim();
    this.wasBox.hidden = typeof original !== "string" || original === "" || original === now;
    if (!this.wasBox.hidden) this.was.replaceChildren(...marked(original, now));
  }

  drawCandidates(candidates) {
    const now = this.area.value.trim();
    this.candidates.replaceChildren(
      ...candidates.slice(0, 9).map((one, index) =>
        el(
          "li",
          {},
          button(one.text, { "aria-pressed": String(one.text === now), "aria-keyshortcuts": String(index + 1), onclick: () => this.take(index) }),
        ),
      ),
    );
    [...this.candidates.querySelectorAll("button")].forEach((made, index) => {
      made.prepend(el("kbd", { "aria-hidden": "true" }, index + 1));
      if (candidates[index].score !== null) made.append(el("span", { class: "number" }, candidates[index].score.toFixed(2)));
    });
    if (!candidates.length) this.candidates.replaceChildren(el("li", { class: "note" }, "None are kept. R asks the model."));
  }

  drawTokens(tokens, cut) {
    const over = tokens > LIMIT;
    this.count.textContent = `${tokens} of ${LIMIT} tokens`;
    this.chars.textContent = `${this.area.value.length.toLocaleString()} characters`;
    this.meter.style.width = `${Math.min(100, (100 * tokens) / LIMIT)}%`;
    this.countRow.classList.toggle("over", over);
    this.cut.hidden = !over || cut === null;
    if (over && cut !== null) this.cut.textContent = `CLIP stops reading before “${this.area.value.slice(cut, cut + 40).trim()}${cut + 40 < this.area.value.length ? "…" : ""}”.`;
  }

  async countTokens() {
    const text = this.area.value;
    try {
      const { tokens, cut } = await this.api.json("review/api/count", { text });
      if (this.area.value === text) this.drawTokens(tokens, cut);
    } catch {
      // The next key asks again, and saving says what is wrong.
    }
  }

  // --- saving --------------------------------------------------------------------------------------------------------

  typed() {
    if (!this.current) return;
    this.typedInto = this.group;
    this.say("saved", "Typing …", "pencil");
    this.drawWas();
    this.later("count", COUNT_AFTER, () => this.countTokens());
    this.later("save", SAVE_AFTER, () => this.save());
  }

  isDirty() {
    return this.current?.isKnown && !this.area.disabled && !this.current.conflict && this.area.value.trim() !== (this.current.text ?? "").trim();
  }

  /** Keep what is typed. One after another, so that a later one never overtakes. */
  save(title = null) {
    clearTimeout(this.timers?.save);
    if (!this.isDirty()) return this.saving;
    const row = this.current;
    const text = this.area.value;
    const before = row.text ?? "";
    row.text = text.trim();
    this.say("saved", "Saving …", "up");
    this.saves += 1;
    const asked = { name: row.name, text, before, group: this.group, ...(title && { title }) };
    this.saving = this.saving.then(() => this.send(row, asked));
    return this.saving;
  }

  async send(row, asked) {
    try {
      const answer = await this.api.json("review/api/edit", asked);
      if (answer.conflict) return this.conflict(row, asked, answer);
      this.list.put(answer.row);
      if (this.current === row) {
        Object.assign(row, { ...answer.row, text: row.text, candidates: row.candidates });
        this.drawProblem(answer.row.problem);
        this.drawWas();
        this.places.textContent = `Kept in ${answer.row.places.join(" and ")}.`;
      }
      this.draw(answer.state);
    } catch (error) {
      if (row.text === asked.text.trim()) row.text = asked.before;
      this.say("wrong", `Not saved: ${error.message}`, "stop");
      if (this.current === row) {
        this.saved.append(button("Save again", { quiet: true, onclick: () => this.save() }));
        this.saved.dataset.words = "";
      } else this.api.toast(`The text of ${row.name} was not saved: ${error.message}`, { seconds: 20 });
    }
  }

  /** Somebody else has written another text meanwhile: the user says which of the two stays. */
  conflict(row, asked, answer) {
    this.list.put(answer.row);
    this.draw(answer.state);
    if (this.current !== row) return this.api.toast(`${row.name}: ${answer.conflict}`, { seconds: 20 });
    row.conflict = true;
    const choose = (text) => {
      Object.assign(row, answer.row, { conflict: false });
      this.area.value = text;
      this.drawProblem(null);
      this.drawWas();
      this.save();
      this.area.focus();
    };
    this.say("wrong", "Not saved", "stop");
    this.problem.hidden = false;
    this.problem.replaceChildren(
      el("span", {}, `${answer.conflict} It is now: “${answer.row.text ?? ""}”`),
      el("span", { class: "row" }, button("Keep mine", { onclick: () => choose(this.area.value) }), button("Take that", { onclick: () => choose(answer.row.text ?? "") })),
    );
  }

  /** Another text at once: a candidate, the one before. It is a step of its own. */
  async put(text, title) {
    await this.save();
    this.group = `${Date.now().toString(36)}-taken`;
    this.area.value = text;
    this.drawTokens(this.current.tokens ?? 0, null);
    this.countTokens();
    await this.save(title);
    this.drawCandidates(this.current.candidates);
  }

  take(index) {
    const one = this.current?.candidates[index];
    if (!one) return;
    this.api.say(`Candidate ${index + 1}: ${one.text}`);
    return this.put(one.text, `Candidate ${index + 1} for ${this.current.name}`);
  }

  restore() {
    return this.put(this.current.original, `Bring back the text of ${this.current.name}`);
  }

  async turn(way) {
    await this.save();
    try {
      const answer = await this.api.json(`review/api/${way}`, {});
      const one = answer.examples[0];
      const left = answer.skipped.length ? `; ${answer.skipped.length} were changed since and stay` : "";
      this.api.toast(`${way === "undo" ? "Taken back" : "Done again"}: ${answer.title}${left}`);
      this.list.refresh();
      this.draw(answer.state);
      const index = one ? this.list.indexOf(one.name) : -1;
      if (index >= 0 && index !== this.index) await this.go(index);
      else if (this.current) await this.load(this.current.name);
      this.drawers.refresh();
    } catch (error) {
      this.api.toast(error.message);
    }
  }

  async ask(take = false) {
    const row = this.current;
    if (!row || this.askButton.disabled) return;
    await this.save();
    this.askButton.disabled = true;
    this.api.say("The model is asked");
    try {
      const answer = await this.api.json("review/api/ask", { name: row.name, model: this.model.value || null, num_candidates: CANDIDATES });
      this.list.rows.delete(row.name);
      if (this.current !== row && this.current?.name !== row.name) return;
      await this.load(row.name);
      if (take || !this.area.value.trim()) await this.put(answer.text, `Ask ${answer.model ?? "the model"} about ${row.name}`);
      this.api.say(`${answer.candidates.length} candidates: ${answer.candidates[0]?.text ?? answer.text}`);
    } catch (error) {
      this.api.toast(error.message);
      const failed = await this.api.json("review/api/fail", { name: row.name, reason: error.message });
      this.list.put(failed);
      if (this.current?.name === row.name) this.drawProblem(failed.problem);
      this.settle();
    } finally {
      this.askButton.disabled = false;
    }
  }

  // --- selection, keys, help -----------------------------------------------------------------------------------------

  drawSelection() {
    const count = this.list.selected.size;
    this.element.classList.toggle("selecting", count > 0);
    this.picked.hidden = count === 0;
    this.picked.replaceChildren(
      el("span", { class: "number" }, `${count.toLocaleString()} selected`),
      el(
        "span",
        { class: "row" },
        button("Change", { picture: "pencil", onclick: () => this.drawers.open("bulk") }),
        button("None", { quiet: true, onclick: () => this.list.selectNone() }),
      ),
    );
    this.drawers.refresh();
  }

  showList() {
    this.element.classList.toggle("listing");
    this.list.draw();
    if (!this.element.classList.contains("listing")) return this.element.querySelector(".show-list").focus();
    this.list.mark(this.index);
    this.list.element.focus();
  }

  key(event) {
    if (event.defaultPrevented || document.querySelector("dialog[open]")) return;
    const { key, altKey, shiftKey } = event;
    const command = event.ctrlKey || event.metaKey;
    const within = document.activeElement;
    const typing = within?.matches("input, textarea, select") ?? false;
    const done = (action) => {
      event.preventDefault();
      action();
    };
    if (key === "Escape") return this.escape(event);
    if (command && key === "Enter") return done(() => this.saveAndGoOn());
    if (command && key.toLowerCase() === "s") return done(() => this.save());
    if (command && ["z", "y"].includes(key.toLowerCase())) {
      // While a text is being changed the browser's own undo takes letters back; afterwards ours takes the edit back.
      if (typing && (within !== this.area || this.hasTyped())) return;
      return done(() => this.turn(shiftKey || key.toLowerCase() === "y" ? "redo" : "undo"));
    }
    if (command) return;
    if (altKey && (key === "ArrowDown" || key === "ArrowUp")) return done(() => this.step(key === "ArrowDown" ? 1 : -1));
    if (altKey && /^[1-9]$/.test(key)) return done(() => this.take(Number(key) - 1));
    if (altKey || typing) return;
    const inDrawer = within?.closest(".review-drawer, .toasts");
    if (inDrawer && (key === "Enter" || key === " " || key.startsWith("Arrow"))) return;
    if (/^[1-9]$/.test(key)) return done(() => this.take(Number(key) - 1));
    if (key === "Enter" && within?.closest("button, a")) return; // it is pressed
    const action = {
      j: () => this.step(1),
      ArrowDown: () => this.step(1),
      k: () => this.step(-1),
      ArrowUp: () => this.step(-1),
      e: () => this.edit(),
      Enter: () => this.edit(),
      r: () => this.ask(),
      x: () => this.index >= 0 && this.list.select(this.index),
      b: () => this.drawers.open("bulk"),
      t: () => this.drawers.open("terms"),
      h: () => this.drawers.open("history"),
      "/": () => (this.filter.focus(), this.filter.select()),
      "?": () => this.help(),
      Home: () => this.go(0),
      End: () => this.go(this.list.names.length - 1),
    }[key.length === 1 ? key.toLowerCase() : key];
    if (action) done(action);
  }

  escape(event) {
    if (this.element.classList.contains("listing")) this.element.classList.remove("listing");
    else if (document.activeElement === this.area) this.save();
    else if (this.drawers.shown) return this.drawers.close();
    else if (this.list.selected.size) this.list.selectNone();
    else return;
    event.preventDefault();
    this.list.element.focus({ preventScroll: true });
  }

  /** Whether letters were typed since the picture was opened: the browser's undo knows of them. */
  hasTyped() {
    return this.isDirty() || this.typedInto === this.group;
  }

  edit() {
    this.area.focus();
    this.area.setSelectionRange(this.area.value.length, this.area.value.length);
  }

  async saveAndGoOn() {
    const typing = document.activeElement === this.area;
    const last = this.index + 1 >= this.list.names.length;
    const saved = this.save();
    if (last) {
      await saved;
      return this.api.toast("That was the last picture.");
    }
    await this.go(this.index + 1, { focus: typing ? this.area : null });
  }

  help() {
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
    this.showDialog(dialog);
  }

  /** A dialog that goes when it is closed; the focus returns to where it was. */
  showDialog(dialog) {
    const before = document.activeElement;
    document.body.append(dialog);
    dialog.addEventListener("close", () => {
      dialog.remove();
      (before?.isConnected && before !== document.body ? before : this.list.element).focus({ preventScroll: true });
    });
    dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
    dialog.showModal();
  }
}

function modelsOf(api) {
  return api.settings.models ?? [];
}
