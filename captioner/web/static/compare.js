// Compare: two texts side by side, the words that differ marked, and how alike they are by meaning and by letters.
// A side is a text, a model that is asked about the pictures, or a file of texts.

import { answer } from "./api.js";
import { differences } from "./diff.js";
import { button, el, shortName } from "./dom.js";
import { describe, inUse, load } from "./settings.js";
import { fileOf, readTables } from "./tables.js";

const AT_A_TIME = 64; // pairs in one request
const SHOWN = 60; // pairs before "Show more"
const LONGEST = 20_000; // letters of a text
const FIGURES = {
  cosine: ["Cosine", "of their embeddings (MiniLM-L6): how near they are in meaning"],
  ratio: ["Ratio", "of their letters: what insertions and deletions leave, as python-Levenshtein's ratio"],
  quick_ratio: ["Quick ratio", "of their letters whatever the order, as difflib's quick_ratio"],
};

export function mount(section, api) {
  const view = new Compare(section, api);
  return { shown: (state) => (state ? view.take(state) : view.returned()) };
}

class Compare {
  constructor(section, api) {
    this.section = section;
    this.api = api;
    this.pictures = [];
    this.settings = ""; // Caption's, as JSON: what models are asked with
    this.version = 0;
    this.shownPairs = SHOWN;
    this.sides = { left: new Side("left", this), right: new Side("right", this) };
    this.build();
    this.listen();
    this.changed();
  }

  take({ left, right }) {
    this.sides.left.put(left);
    this.sides.right.put(right);
    this.changed();
  }

  /** Caption may have other settings by now. */
  returned() {
    if (this.asks() && this.settings !== this.settingsNow()) this.changed();
  }

  asks() {
    return Object.values(this.sides).some((side) => side.kind === "model");
  }

  settingsNow() {
    return JSON.stringify(load("", this.api.settings).values);
  }

  build() {
    const swap = button("Swap the sides", { picture: "swap", hideLabel: true, class: "swap", onclick: () => this.swap() });
    this.files = el("input", { type: "file", multiple: true, accept: this.api.acceptedPictures(), id: "compare-pictures", class: "visually-hidden", tabindex: "-1", "aria-hidden": "true" });
    this.files.addEventListener("change", () => {
      this.addPictures([...this.files.files]);
      this.files.value = "";
    });
    this.strip = el("div", { class: "strip" });
    this.needed = el(
      "div",
      { class: "pictures card", hidden: true },
      el("div", { class: "row" }, button("Choose pictures", { picture: "picture", onclick: () => this.files.click() }), el("span", { class: "note grow" }, "Both sides are asked about the same pictures: drop them anywhere."), button("Clear", { picture: "close", quiet: true, class: "none", onclick: () => this.clearPictures() })),
      this.strip,
    );
    this.order = el(
      "select",
      { id: "order", onchange: () => this.drawPairs() },
      [["worst", "Least alike first"], ["best", "Most alike first"], ["given", "As they came"]].map(([value, words]) => el("option", { value }, words)),
    );
    this.by = el("select", { id: "by", "aria-label": "Figure to sort by", onchange: () => this.drawPairs() }, Object.entries(FIGURES).map(([value, [label]]) => el("option", { value }, label)));
    this.differing = el("input", { type: "checkbox", id: "differing", onchange: () => this.drawPairs() });
    this.summary = el("div", { class: "figures", role: "group", "aria-label": "How alike they are" });
    this.status = el("p", { class: "note status", role: "status" });
    this.controls = el("div", { class: "row controls", hidden: true }, el("label", { for: "order", class: "visually-hidden" }, "Order"), this.order, this.by, el("label", { class: "row check" }, this.differing, "Only what differs"));
    this.list = el("div", { class: "pairs" });
    this.section.replaceChildren(
      this.files,
      el("h1", { class: "visually-hidden" }, "Compare"),
      el("div", { class: "sides" }, this.sides.left.node, swap, this.sides.right.node),
      this.needed,
      this.summary,
      this.status,
      this.controls,
      this.list,
    );
  }

  listen() {
    const here = () => !this.section.hidden && !document.querySelector("dialog[open]");
    window.addEventListener("drop", (event) => {
      if (!here() || !event.dataTransfer) return;
      const files = [...event.dataTransfer.files];
      const isImage = (file) => file.type.startsWith("image/") || this.api.isPicture(file.name); // browsers know fewer
      const images = files.filter(isImage);
      const others = files.filter((file) => !isImage(file));
      const side = this.sides.right.node.contains(event.target) ? this.sides.right : this.sides.left;
      if (images.length > 0) this.addPictures(images);
      if (others.length > 0) side.read(others);
    });
  }

  swap() {
    const { left, right } = this.sides;
    const kept = left.state();
    left.restore(right.state());
    right.restore(kept);
    this.changed();
    this.api.say("Swapped");
  }

  // --- pictures ----------------------------------------------------------------------------------------------------

  addPictures(files) {
    for (const file of files) {
      const names = this.pictures.map((picture) => picture.name);
      if (!names.includes(file.name)) this.pictures.push({ name: file.name, file, url: URL.createObjectURL(file) });
    }
    if (!this.asks()) this.sides.right.choose("model");
    this.changed();
  }

  clearPictures() {
    for (const picture of this.pictures) URL.revokeObjectURL(picture.url);
    this.pictures = [];
    for (const side of Object.values(this.sides)) side.answers.clear();
    this.changed();
  }

  // --- pairs -------------------------------------------------------------------------------------------------------

  /** Something is another than it was: ask, pair, measure, draw. Only the last of several changes is followed. */
  async changed() {
    const version = (this.version += 1);
    const isOld = () => version !== this.version;
    const { left, right } = this.sides;
    const asks = this.asks();
    this.settings = this.settingsNow();
    this.needed.hidden = !asks;
    this.needed.classList.toggle("empty", this.pictures.length === 0);
    this.strip.replaceChildren(...(asks ? this.pictures.map((picture) => el("img", { src: picture.url, alt: picture.name, title: picture.name })) : []));
    if (asks) await this.askModels(isOld);
    if (isOld()) return;
    const { pairs, note } = paired(left.rows(), right.rows());
    this.note = note;
    const urls = new Map(this.pictures.map((picture) => [picture.name, picture.url]));
    const told = pairs.filter((pair) => pair.file || pair.left || pair.right); // of two empty fields there is nothing to tell
    this.pairs = told.map((pair) => ({ ...pair, url: urls.get(pair.file), figures: null, parts: null }));
    this.shownPairs = SHOWN;
    this.drawPairs();
    await this.measure(isOld);
  }

  async askModels(isOld) {
    const waiting = [];
    for (const side of Object.values(this.sides))
      if (side.kind === "model") for (const picture of this.pictures) if (!side.answers.has(side.keyOf(picture))) waiting.push([side, picture]);
    let done = 0;
    const work = async () => {
      for (;;) {
        const next = waiting.shift();
        if (!next || isOld()) return;
        const [side, picture] = next;
        await side.ask(picture);
        done += 1;
        if (!isOld()) this.status.textContent = `Captioning: ${done} of ${done + waiting.length} …`;
      }
    };
    await Promise.all(Array.from({ length: this.api.settings.at_once }, work));
  }

  async measure(isOld) {
    const pairs = this.pairs.filter((pair) => !pair.error && (pair.left !== "" || pair.right !== ""));
    try {
      for (let start = 0; start < pairs.length; start += AT_A_TIME) {
        const some = pairs.slice(start, start + AT_A_TIME);
        const { results } = await this.api.json("page/compare", { left: some.map((pair) => pair.left), right: some.map((pair) => pair.right) });
        if (isOld()) return;
        some.forEach((pair, index) => (pair.figures = results[index]));
        this.status.textContent = pairs.length > AT_A_TIME ? `Compared ${Math.min(start + AT_A_TIME, pairs.length)} of ${pairs.length} …` : "";
      }
      this.status.textContent = this.note;
    } catch (error) {
      if (!isOld()) this.status.textContent = error.message;
    }
    if (!isOld()) this.drawPairs();
  }

  drawPairs() {
    const several = this.pairs.length > 1;
    this.drawSummary();
    this.controls.hidden = !several;
    const by = this.by.value;
    let pairs = this.differing.checked && several ? this.pairs.filter((pair) => pair.left !== pair.right) : [...this.pairs];
    const sign = { worst: 1, best: -1 }[this.order.value];
    const value = (pair) => pair.figures?.[by] ?? (sign > 0 ? -1 : 2);
    if (several && sign) pairs = pairs.sort((a, b) => sign * (value(a) - value(b)));
    const more = pairs.length > this.shownPairs && button(`Show more (${(pairs.length - this.shownPairs).toLocaleString()})`, { class: "more", onclick: () => ((this.shownPairs += SHOWN), this.drawPairs()) });
    this.list.classList.toggle("one", !several);
    const at = [...this.list.children].findIndex((one) => one.contains(document.activeElement));
    this.list.replaceChildren(...pairs.slice(0, this.shownPairs).map((pair) => this.drawPair(pair, several)), ...(more ? [more] : []));
    this.list.children[at]?.focus({ preventScroll: true }); // the first of those that "Show more" has brought, say
  }

  drawSummary() {
    const measured = this.pairs.map((pair) => pair.figures).filter(Boolean);
    const tiles = Object.entries(FIGURES).map(([name, [label, meaning]]) => {
      const values = measured.map((figures) => figures[name]);
      const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
      const bar = el("i", { class: "share" });
      bar.style.width = `${Math.max(0, Math.min(1, mean || 0)) * 100}%`;
      const shape = values.length >= 5 ? histogram(values) : el("span", { class: "meter", "aria-hidden": "true" }, bar);
      return el("div", { class: "tile", "data-figure": name, title: meaning }, el("h2", {}, label, values.length > 1 && el("small", {}, " mean")), el("b", { class: "number" }, values.length ? mean.toFixed(4) : "–"), shape, el("p", { class: "note" }, meaning));
    });
    this.summary.replaceChildren(...tiles);
  }

  drawPair(pair, several) {
    if (pair.error) {
      const again = button("Try again", { picture: "retry", class: "retry", onclick: () => (pair.forget(), this.changed()) });
      return el("article", { class: "pair card failed", tabindex: "-1" }, pair.url && el("img", { src: pair.url, alt: "" }), el("div", { class: "wide" }, el("h3", {}, pair.file), el("p", { class: "warning" }, pair.error), again));
    }
    pair.parts ??= differences(pair.left, pair.right);
    const figures = several && pair.figures && el("p", { class: "note number measured" }, Object.entries(FIGURES).map(([name, [label]]) => el("span", {}, `${label} ${pair.figures[name].toFixed(3)}`)));
    const text = (side, kind, tag) => {
      const tokens = pair.figures && el("span", { class: "note number" }, `${pair.figures[`${side}_tokens`]} CLIP tokens`);
      const words = pair.parts.filter((part) => part.kind === "same" || part.kind === kind).map((part) => (part.kind === "same" ? part.text : el(tag, { class: "word" }, part.text)));
      return el("div", { class: "marked", "data-side": side }, el("h3", {}, this.sides[side].title()), el("p", { class: "said" }, words.length ? words : el("span", { class: "soft" }, "(nothing)")), tokens);
    };
    return el(
      "article",
      { class: "pair card", tabindex: "-1" },
      pair.url && el("img", { src: pair.url, alt: "", loading: "lazy" }),
      (pair.file || figures) && el("header", {}, pair.file && el("h3", { class: "name" }, pair.file), figures),
      text("left", "left", "del"),
      text("right", "right", "ins"),
    );
  }
}

// --- one side --------------------------------------------------------------------------------------------------------

const KINDS = { text: "Text", model: "Model", file: "File" };

class Side {
  constructor(where, view) {
    this.where = where;
    this.view = view;
    this.kind = "text";
    this.name = null;
    this.text = "";
    this.model = view.api.settings.models.at(where === "left" ? 0 : -1);
    this.table = null;
    this.column = null;
    this.answers = new Map();
    this.build();
    this.draw();
  }

  build() {
    const group = el("div", { class: "segments", role: "group", "aria-label": `What the ${this.where} side is` });
    for (const [kind, label] of Object.entries(KINDS)) group.append(el("button", { type: "button", "data-kind": kind, onclick: () => (this.choose(kind), this.view.changed()) }, label));
    this.segments = group;
    this.heading = el("h2", {});
    this.inside = el("div", { class: "inside" });
    this.field = el("input", { type: "file", multiple: true, accept: ".jsonl,.json,.csv,.txt,.caption", class: "visually-hidden", id: `file-${this.where}`, tabindex: "-1", "aria-hidden": "true" });
    this.field.addEventListener("change", () => {
      const files = [...this.field.files];
      this.field.value = "";
      if (files.length) this.read(files);
    });
    this.node = el("section", { class: `side card ${this.where}`, "aria-label": this.where === "left" ? "Left" : "Right" }, el("header", {}, this.heading, group), this.inside, this.field);
  }

  title() {
    if (this.name) return this.name;
    if (this.kind === "model") return shortName(this.model);
    if (this.kind === "file" && this.table) return this.table.name;
    return this.where === "left" ? "Left" : "Right";
  }

  choose(kind) {
    this.kind = kind;
    this.name = null;
    this.draw();
  }

  /** From elsewhere: `{name, text}` or `{name, rows: [{file, text}]}`. */
  put({ name = null, text = "", rows = null }) {
    if (rows) Object.assign(this, { kind: "file", table: { name, columns: ["text"], rows }, column: "text" });
    else Object.assign(this, { kind: "text", text });
    this.name = name;
    this.draw();
  }

  state() {
    const { kind, name, text, model, table, column, answers } = this;
    return { kind, name, text, model, table, column, answers };
  }

  restore(state) {
    Object.assign(this, state);
    this.draw();
  }

  draw() {
    const hadFocus = this.inside.contains(document.activeElement);
    for (const segment of this.segments.children) segment.setAttribute("aria-pressed", String(segment.dataset.kind === this.kind));
    this.inside.replaceChildren(...{ text: () => this.drawText(), model: () => this.drawModel(), file: () => this.drawFile() }[this.kind]());
    if (hadFocus) this.inside.querySelector("button, select, textarea").focus();
    this.heading.textContent = this.title();
    this.heading.title = this.title();
  }

  drawText() {
    const area = el("textarea", { rows: 4, maxlength: LONGEST, spellcheck: "false", "aria-label": this.where === "left" ? "Left text" : "Right text", placeholder: "Type or paste a text" });
    area.value = this.text;
    let timer = null;
    area.addEventListener("input", () => {
      this.text = area.value;
      this.name = null;
      this.heading.textContent = this.title();
      clearTimeout(timer);
      timer = setTimeout(() => this.view.changed(), 250);
    });
    return [area];
  }

  drawModel() {
    const { models } = this.view.api.settings;
    const select = el("select", { "aria-label": "Model", onchange: () => ((this.model = select.value), (this.heading.textContent = this.title()), this.view.changed()) }, models.map((name) => el("option", { value: name }, shortName(name))));
    select.value = this.model;
    return [select, el("p", { class: "note" }, "With the settings of Caption, as far as the model has a use for them.")];
  }

  drawFile() {
    const choose = button(this.table ? "Another file" : "Choose a file", { picture: "folder", class: "choose-file", onclick: () => this.field.click() });
    const words = el("p", { class: "note" }, this.table ? `${this.table.rows.length.toLocaleString()} rows. Rows of both sides are matched by the picture that they name.` : "A .jsonl or .csv of captions, or .txt files; drop them here.");
    if (!this.table || this.table.columns.length < 2) return [choose, words];
    const select = el("select", { "aria-label": "Column", onchange: () => ((this.column = select.value), this.view.changed()) }, this.table.columns.map((name) => el("option", { value: name }, name)));
    select.value = this.column;
    return [el("div", { class: "row" }, choose, select), words];
  }

  async read(files) {
    try {
      this.table = await readTables(files);
      this.column = this.table.columns[0];
      this.choose("file");
      this.view.changed();
    } catch (error) {
      this.view.api.toast(error.message);
    }
  }

  rows() {
    if (this.kind === "text") return [{ file: null, text: this.text, isOne: true }];
    if (this.kind === "file") return (this.table?.rows ?? []).map((row) => ({ file: fileOf(row), text: String(row[this.column] ?? "").slice(0, LONGEST) }));
    return this.view.pictures.map((picture) => ({ file: picture.name, text: "", ...this.answers.get(this.keyOf(picture)), forget: () => this.answers.delete(this.keyOf(picture)) }));
  }

  keyOf(picture) {
    return `${this.model}\n${this.view.settings}\n${picture.name}`;
  }

  async ask(picture) {
    const { api, settings: chosen } = this.view;
    const { model } = this;
    const key = this.keyOf(picture);
    try {
      const settings = { model, ...inUse(JSON.parse(chosen), await describe(api, model)) };
      const { text } = await answer("v1/generate", picture.file, picture.name, settings);
      this.answers.set(key, { text: text.slice(0, LONGEST) });
    } catch (error) {
      this.answers.set(key, { text: "", error: error.message });
    }
  }
}

// --- which belongs to which --------------------------------------------------------------------------------------------

const stemOf = (file) => file.split(/[\\/]/).at(-1).replace(/\.[^.]*$/, "").toLowerCase();

/** Pairs of rows: by the picture that both name, else in order; one text goes with every row of the other side. */
export function paired(left, right) {
  const pair = (a, b) => ({ file: a.file ?? b.file, left: a.text, right: b.text, error: a.error ?? b.error ?? null, forget: () => (a.forget?.(), b.forget?.()) });
  if (left.length === 1 && left[0].isOne) return { pairs: right.map((row) => pair(left[0], row)), note: "" };
  if (right.length === 1 && right[0].isOne) return { pairs: left.map((row) => pair(row, right[0])), note: "" };
  if (left.length === 0 || right.length === 0) return { pairs: [], note: "" };
  if ([...left, ...right].some((row) => row.file === null)) {
    const count = Math.min(left.length, right.length);
    const rest = Math.max(left.length, right.length) - count;
    const words = `Matched by their order${rest ? `; ${rest.toLocaleString()} without a partner are left out` : ""}.`;
    return { pairs: left.slice(0, count).map((row, index) => pair(row, right[index])), note: words };
  }
  const whole = new Map(right.map((row) => [row.file, row]));
  const stems = new Map();
  for (const row of right) stems.set(stemOf(row.file), stems.has(stemOf(row.file)) ? null : row);
  const pairs = [];
  for (const row of left) {
    const other = whole.get(row.file) ?? stems.get(stemOf(row.file));
    if (other) pairs.push(pair(row, other));
  }
  const rest = left.length + right.length - 2 * pairs.length;
  return { pairs, note: rest > 0 ? `${pairs.length.toLocaleString()} pairs; without a partner of the same name: ${rest.toLocaleString()}.` : "" };
}

/** How many pairs lie where between 0 and 1. */
function histogram(values) {
  const bins = new Array(20).fill(0);
  for (const value of values) bins[Math.max(0, Math.min(19, Math.floor(value * 20)))] += 1;
  const most = Math.max(...bins);
  const bars = bins.map((count) => {
    const bar = el("i", {});
    bar.style.height = `${count ? Math.max(6, (100 * count) / most) : 0}%`;
    return bar;
  });
  return el("span", { class: "histogram", "aria-hidden": "true" }, bars);
}
