// The text of one picture: typed, saved by itself, compared with what was there, taken from a model's candidates.

import { button, el } from "./dom.js";
import { Complete } from "./review-complete.js";
import { settingsFor } from "./settings.js";
import { marked } from "./review-words.js";

const SAVE_AFTER = 700; // milliseconds without a key
const COUNT_AFTER = 150;
const KEEPALIVE = 15_000; // characters: browsers send up to 64 kB after a page is closed
const LIMIT = 77; // tokens that CLIP reads
const CANDIDATES = 5; // asked for at a time

export class Editor {
  constructor(review) {
    this.review = review;
    this.api = review.api;
    this.current = null; // the whole row, as the server told it
    this.group = ""; // what is typed into one text at a time is taken back together
    this.saving = Promise.resolve();
    this.saves = 0;
    this.unsaved = new Map(); // name → what was asked to be kept, in vain, when its picture had been left already
    this.disputed = new Set(); // those of them that somebody else has changed meanwhile
    this.build();
  }

  build() {
    this.area = el("textarea", {
      id: "review-area",
      "aria-label": "Text",
      spellcheck: "true",
      oninput: () => this.typed(),
      onblur: () => this.save(),
    });
    this.complete = new Complete(this);
    this.problem = el("div", { class: "review-problem", role: "alert", hidden: true });
    this.meter = el("span", {});
    this.count = el("span", { class: "number" });
    this.countRow = el("div", { class: "review-count" }, this.count, el("span", { class: "meter", "aria-hidden": "true" }, this.meter), (this.chars = el("span", { class: "number" })));
    this.cut = el("p", { class: "review-cut", hidden: true });
    this.was = el("p", { class: "review-was" });
    this.wasBox = el("section", { hidden: true, "aria-label": "What was changed" }, el("h2", {}, "What was changed", button("Bring back", { picture: "undo", quiet: true, onclick: () => this.restore() })), this.was);
    this.candidates = el("ol", { class: "review-candidates" });
    const models = this.api.settings.models ?? [];
    this.model = el(
      "select",
      { "aria-label": "Model", hidden: models.length < 2 },
      ...models.map((name) => el("option", { value: name }, name)),
    );
    this.askButton = button("Ask again", { picture: "retry", title: "Ask the model again (R)", onclick: () => this.ask() });
    this.places = el("p", { class: "note" });
    this.element = el(
      "div",
      { class: "review-text" },
      this.problem,
      this.area,
      this.complete.element,
      this.countRow,
      this.cut,
      this.wasBox,
      el("section", { "aria-label": "Candidates" }, el("h2", {}, "Candidates", el("span", { class: "row" }, this.model, this.askButton)), this.candidates),
      this.places,
      el(
        "div",
        { class: "review-keys-hint", "aria-hidden": "true" },
        ...[["Ctrl+Enter", "save and go on"], ["J K", "move"], ["?", "all keys"]].map(([keys, words]) => el("span", {}, el("kbd", {}, keys), ` ${words}`)),
      ),
    );
  }

  /**
   * What the server knows of it. Until a text is known nothing can be typed: it would take the text's place. What is
   * typed into a text that the list knew already stays, and is compared with the text that was seen.
   */
  async load(name) {
    if (this.current?.name !== name) {
      const known = this.review.list.rows.get(name);
      const row = { name, text: known?.text ?? "", tokens: known?.tokens, problem: known?.problem, candidates: [], places: [] };
      this.fill({ ...row, isKnown: Boolean(known), loading: true });
      this.takeUp(name);
    }
    try {
      await this.saving;
      if (this.unsaved.has(name) && !this.isDirty()) this.takeUp(name); // it was on its way as the picture was opened
      await this.saving;
      const saves = this.saves;
      const row = await this.api.json("review/api/row", { name });
      if (this.review.name !== name) return;
      if (this.saves !== saves) return this.load(name); // what has come may be the text from before
      this.review.list.put(row);
      const { isKnown, conflict, text } = this.current ?? {};
      if (conflict) this.fill({ ...row, text, conflict: { ...conflict, row } }, this.area.value);
      else if (isKnown && this.isDirty()) this.fill({ ...row, text }, this.area.value);
      else this.fill(row);
    } catch (error) {
      this.api.toast(error.message);
    }
  }

  fill(row, typed = null) {
    const same = this.current?.name === row.name;
    this.current = { isKnown: true, ...row };
    this.area.readOnly = !this.current.isKnown;
    const value = typed ?? row.text ?? "";
    if (this.area.value !== value || !same) (this.area.value = value), this.complete.close();
    this.area.placeholder = row.loading ? "" : "No text yet. Write one, or press R to ask the model.";
    this.drawProblem(row.problem);
    this.drawTokens(row.tokens ?? 0, null);
    this.drawWas();
    if (row.loading) {
      this.candidates.replaceChildren(); // those of the picture before are no choice
      this.places.textContent = "";
      return;
    }
    this.drawCandidates(row.candidates);
    this.drawPlaces(row);
    this.countTokens();
  }

  /** No picture is shown. */
  empty() {
    this.current = null;
    this.area.value = this.area.placeholder = "";
    this.area.readOnly = true; // not disabled, which would lose the focus
    this.drawTokens(0, null);
    this.candidates.replaceChildren();
    for (const part of [this.wasBox, this.problem, this.cut]) part.hidden = true;
    this.places.textContent = "";
  }

  drawPlaces({ text, places }) {
    this.places.textContent = `${text === null ? "A text will be kept" : "Kept"} in ${places.join(" and ")}.`;
  }

  drawProblem(problem) {
    if (this.current.conflict) return this.drawConflict();
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

  // --- saving ---------------------------------------------------------------------------------------------------------

  typed() {
    if (!this.current) return;
    this.typedInto = this.group;
    this.complete.typed();
    this.review.say("Typing …", "pencil");
    this.drawWas();
    this.review.later("count", COUNT_AFTER, () => this.countTokens());
    this.review.later("save", SAVE_AFTER, () => this.save());
  }

  isDirty() {
    return this.current?.isKnown && !this.current.conflict && this.area.value.trim() !== (this.current.text ?? "").trim();
  }

  /** Keep what is typed. One after another, so that a later one never overtakes. */
  save(title = null) {
    this.review.cancel("save");
    if (!this.isDirty()) return this.saving;
    const row = this.current;
    const text = this.area.value;
    const before = row.text ?? "";
    row.text = text.trim();
    this.review.say("Saving …", "up");
    this.saves += 1;
    const asked = { name: row.name, text, before, group: this.group, ...(title && { title }) };
    this.saving = this.saving.then(() => this.send(row, asked));
    return this.saving;
  }

  async send(row, asked) {
    if (row.lost?.text.trim() === asked.before.trim()) asked.before = row.lost.before; // it was never seen there
    try {
      const answer = await this.api.json("review/api/edit", asked, { keepalive: asked.text.length < KEEPALIVE }); // a closed tab saves, too
      if (answer.conflict) return this.conflict(row, asked, answer);
      row.lost = null;
      if (this.unsaved.has(row.name)) this.release(row.name); // an earlier one, which this one takes the place of
      this.review.list.put(answer.row);
      if (this.current === row) {
        Object.assign(row, { ...answer.row, text: row.text, candidates: row.candidates });
        this.drawProblem(answer.row.problem);
        this.drawWas();
        this.drawPlaces(answer.row);
      }
      this.review.draw(answer.state);
      this.saveWhatWasLeft();
    } catch (error) {
      row.lost = asked;
      if (row.text === asked.text.trim()) row.text = asked.before;
      const again = this.current === row && button("Save again", { quiet: true, onclick: () => this.save() });
      this.review.say(`Not saved: ${error.message}`, "stop", "", again);
      if (!again) {
        this.keep(asked);
        this.api.toast(`The text of ${row.name} is not saved yet: ${error.message}`, { seconds: 20 });
      }
    }
  }

  /** A text whose picture has been left waits here. */
  keep(asked) {
    const earlier = this.unsaved.get(asked.name); // what the server never had is nothing that the user saw there
    const before = earlier?.text.trim() === asked.before.trim() ? earlier.before : asked.before;
    this.unsaved.set(asked.name, { ...asked, before });
    this.review.list.redraw();
  }

  /** It waits no more. */
  release(name) {
    this.unsaved.delete(name);
    this.disputed.delete(name);
    this.review.list.redraw();
  }

  /** The picture of a text that waits is shown again: the text is there as it was typed, and sent once more. */
  takeUp(name) {
    const left = this.unsaved.get(name);
    if (!left || this.current?.name !== name) return;
    this.release(name);
    this.fill({ ...this.current, text: left.before, isKnown: true }, left.text);
    this.save();
  }

  /** The server takes texts again. */
  saveWhatWasLeft() {
    for (const [name, asked] of [...this.unsaved].filter(([name]) => !this.disputed.has(name))) {
      this.release(name);
      this.saving = this.saving.then(() => this.send({ name }, asked));
    }
  }

  /** Somebody else has written another text meanwhile: the user says which of the two stays, if need be later. */
  conflict(row, asked, answer) {
    this.review.list.put(answer.row);
    if (this.current === row) {
      row.conflict = answer;
      this.drawConflict();
    } else {
      this.keep(asked);
      this.disputed.add(row.name);
      this.api.toast(answer.conflict, { seconds: 20 });
    }
    this.review.draw(answer.state);
  }

  drawConflict() {
    const { conflict, row } = this.current.conflict;
    const choose = (text) => {
      Object.assign(this.current, row, { conflict: null });
      this.area.value = text;
      this.drawProblem(null);
      this.drawWas();
      this.countTokens();
      if (this.isDirty()) this.save();
      else this.review.draw(this.review.state);
      this.area.focus();
    };
    this.problem.hidden = false;
    this.problem.replaceChildren(
      el("span", {}, `${conflict} It is now: “${row.text ?? ""}”`),
      el("span", { class: "row" }, button("Keep mine", { onclick: () => choose(this.area.value) }), button("Take that", { onclick: () => choose(row.text ?? "") })),
    );
  }

  /** Whether the picture may be left, or its text replaced: first the user says which of two texts stays. */
  mayGoOn() {
    if (!this.current?.conflict) return true;
    this.problem.querySelector("button").focus();
    this.api.say(this.problem.innerText);
    return false;
  }

  /** Another text at once: a candidate, the one before. It is a step of its own. */
  async put(text, title) {
    const { name } = this.current;
    await this.save();
    if (this.current?.name !== name) return this.api.toast(`${title}: not done, for another picture is shown by now.`);
    if (!this.mayGoOn()) return;
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

  // --- the model ------------------------------------------------------------------------------------------------------

  async ask(take = false) {
    const row = this.current;
    if (!row || this.askButton.disabled) return;
    await this.save();
    this.askButton.disabled = true;
    this.api.say("The model is asked");
    try {
      const model = this.model.value;
      const settings = await settingsFor(this.api, model);
      const candidates = Math.min(CANDIDATES, settings.num_beams ?? CANDIDATES); // a search has none beyond its beams
      const answer = await this.api.json("review/api/ask", { name: row.name, model, num_candidates: candidates, ...settings });
      this.review.list.rows.delete(row.name);
      if (this.current?.name === row.name) await this.load(row.name);
      if (this.current?.name !== row.name) return;
      if (take || !this.area.value.trim()) await this.put(answer.text, `Ask ${answer.model ?? "the model"} about ${row.name}`);
      this.api.say(`${answer.candidates.length || 1} candidates: ${answer.text}`);
    } catch (error) {
      this.api.toast(error.message);
      if (error.status) await this.failed(row.name, error.message);
    } finally {
      this.askButton.disabled = false;
    }
  }

  /** The model has no answer: a row with its reason. */
  async failed(name, reason) {
    try {
      const row = await this.api.json("review/api/fail", { name, reason });
      this.review.list.put(row);
      if (this.current?.name === name) this.drawProblem(row.problem);
      await this.review.settle();
    } catch (error) {
      this.api.toast(error.message);
    }
  }

  /** Whether letters were typed since the picture was opened: the browser's undo knows of them. */
  hasTyped() {
    return this.isDirty() || this.typedInto === this.group;
  }

  edit() {
    this.area.focus();
    this.area.setSelectionRange(this.area.value.length, this.area.value.length);
  }
}
