// Review: a folder's pictures and their texts, to be corrected by the keyboard. Everything that is typed saves itself.
//
// `Review` is the frame: filter, keys, undo, the picture. The list is review-list.js, the text of the picture
// review-editor.js, the terms that are offered there review-complete.js, the drawers (many at once, terms, history)
// review-drawers.js, captioning the whole folder review-run.js, and what the keys do is told in review-help.js.

import { button, closesBeside, el, icon, isComposing, modal } from "./dom.js";
import { Drawers } from "./review-drawers.js";
import { Editor } from "./review-editor.js";
import { help } from "./review-help.js";
import { List, Pictures } from "./review-list.js";
import { Run } from "./review-run.js";
import { pointed } from "./review-words.js";

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
    this.index = -1;
    this.toWrite = 0; // texts, since all were in their files last
    this.timers = new Map();
    this.list = new List(api, {
      onopen: (index) => this.go(index),
      onselect: () => this.drawSelection(),
      isUnsaved: (name) => this.editor.unsaved.has(name),
    });
    this.large = new Pictures(api, "large", 8);
    this.editor = new Editor(this);
    this.drawers = new Drawers(this);
    this.run = new Run(this);
    this.build(element);
    this.onkey = (event) => this.key(event);
    window.addEventListener("beforeunload", (event) => {
      if (this.editor.isDirty() || this.editor.unsaved.size) (this.editor.save(), event.preventDefault());
    });
    document.addEventListener("visibilitychange", () => document.hidden && this.editor.save());
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
        if (isComposing(event)) return;
        if (event.key === "Enter") this.later("filter", 0, () => this.view());
        if (event.key === "Escape" && this.filter.value) (event.stopPropagation(), this.setFilter(""));
        else if (event.key === "Escape" || event.key === "ArrowDown") (event.preventDefault(), this.rest());
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
    this.saved = el("span", { class: "review-saved" });
    this.unread = el("p", { class: "note review-unread", hidden: true });
    this.undoButton = button("Undo", { picture: "undo", hideLabel: true, onclick: () => this.turn("undo") });
    this.redoButton = button("Redo", { picture: "redo", hideLabel: true, onclick: () => this.turn("redo") });
    this.place = el("span", { class: "name" });
    this.figure = el("figure", { tabindex: "-1" });
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
          button("Keys (?)", { picture: "help", hideLabel: true, class: "keys", onclick: () => this.showDialog(help()) }),
        ),
        this.wrong,
        el(
          "div",
          { class: "second" },
          this.chips,
          this.saved,
          button("Look at the folder again", { picture: "retry", hideLabel: true, class: "again", onclick: () => this.lookAgain() }),
        ),
        this.unread,
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
        this.editor.element,
      ),
      this.drawers.element,
    );
    element.replaceChildren(this.element);
  }

  async open() {
    document.addEventListener("keydown", this.onkey);
    this.say("Opening the folder …");
    await this.view();
    this.settle();
    this.run.find();
  }

  shown(state) {
    document.addEventListener("keydown", this.onkey);
    this.list.draw();
    if (typeof state?.filter === "string") this.setFilter(state.filter);
  }

  hidden() {
    document.removeEventListener("keydown", this.onkey);
    this.editor.save();
  }

  /** An action in a while; another of the same name takes its place. */
  later(name, milliseconds, action) {
    this.cancel(name);
    this.timers.set(name, setTimeout(action, milliseconds));
  }

  cancel(name) {
    clearTimeout(this.timers.get(name));
  }

  /** How it is with saving; where something is wrong ("stop") with a button that does something about it. */
  say(words, picture = null, title = "", action = null) {
    const isWrong = picture === "stop";
    this.saved.className = `review-saved ${isWrong ? "wrong" : ""}`;
    this.saved.title = title;
    if (isWrong) this.api.say(words);
    if (action || this.told !== words) this.saved.replaceChildren(...[picture && icon(picture), el("span", {}, words), action].filter(Boolean));
    this.told = action ? null : words;
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
      if (this.viewing === asked) this.unreachable(error.message);
      return;
    }
    if (this.viewing !== asked) return; // another has been asked for meanwhile
    this.showWrong(answer.error);
    if (answer.error) return;
    this.list.show(answer.names);
    this.draw(answer.state);
    const index = this.editor.current && !first ? this.list.indexOf(this.editor.current.name) : -1;
    if (index >= 0) this.mark(index);
    else await this.go(0);
    if (document.activeElement === this.filter) this.api.say(`${answer.names.length} pictures`);
  }

  /** The server does not answer, or the folder is open elsewhere. */
  unreachable(reason) {
    if (this.editor.current) return this.say(reason, "stop");
    this.say("");
    this.figure.replaceChildren(el("div", { class: "notice" }, el("p", {}, reason), button("Try again", { picture: "retry", onclick: () => this.view() })));
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
    const chip = ([words, text, number]) => {
      const made = button(words, { class: "chip", "aria-pressed": String(filter === text), onclick: () => this.setFilter(filter === text ? "" : text) });
      if (number !== undefined) made.append(el("span", { class: "number" }, number.toLocaleString()));
      return made;
    };
    const chips = [["All", "", state.total], ["No text", "is:empty", state.empty], ["Failed", "is:failed", state.failed], ["Edited", "is:edited", state.edited], ["Over 77 tokens", "tokens:>77"]];
    this.chips.replaceChildren(...chips.filter(([, text, number]) => number !== 0 || text === "" || filter === text).map(chip));
    if (filter) this.chips.append(el("span", { class: "soft number" }, `${this.list.names.length.toLocaleString()} shown`));
    for (const [made, title, name] of [[this.undoButton, state.undo, "Undo"], [this.redoButton, state.redo, "Redo"]]) {
      made.setAttribute("aria-disabled", String(!title));
      made.title = title ? `${name}: ${title}` : `Nothing to ${name.toLowerCase()}`;
      made.setAttribute("aria-label", made.title);
    }
    const unread = state.unread.length && `Review reads and writes .txt and .jsonl files, not ${state.unread.join(", ")}.`;
    this.unread.textContent = [unread, state.damaged].filter(Boolean).join(" ");
    this.unread.hidden = !this.unread.textContent;
    this.toWrite = state.unwritten && Math.max(this.toWrite, state.unwritten);
    if (state.stuck) {
      this.say(`Not in its file yet: ${state.stuck}`, "stop", "", button("Try again", { quiet: true, onclick: () => this.retry() }));
    } else if (state.unwritten) {
      const written = (this.toWrite - state.unwritten).toLocaleString();
      this.say(`Saved · ${written} of ${this.toWrite.toLocaleString()} written`, "check", "Safe in the journal; the files follow.");
      this.later("state", 1000, () => this.settle());
    } else if (this.editor.unsaved.size) {
      const names = [...this.editor.unsaved.keys()];
      const why = this.editor.disputed.size ? "Changed by somebody else, too: open it and choose." : "Kept here, and saved with the next text.";
      this.say(`Not saved: ${names.join(", ")}`, "stop", why, button("Show", { quiet: true, onclick: () => this.find(names[0]) }));
    } else if (this.editor.current?.conflict) this.say("Not saved", "stop");
    else if (!this.editor.isDirty()) this.say("Saved", "check", "All is in its files.");
  }

  async settle() {
    try {
      this.draw(await this.api.json("review/api/state"));
    } catch (error) {
      this.say(error.message, "stop");
    }
  }

  /** Files that came, went or were changed by other programs. */
  async lookAgain() {
    await this.editor.save();
    try {
      await this.api.json("review/api/look-again", {});
      await this.changed();
      this.api.say("Looked again");
    } catch (error) {
      this.api.toast(error.message);
    }
  }

  async retry() {
    try {
      this.draw((await this.api.json("review/api/retry", {})).state);
    } catch (error) {
      this.say(error.message, "stop");
    }
  }

  /** Many texts have changed: everything that is shown is asked for anew. */
  async changed() {
    this.list.refresh();
    await this.view();
    if (this.editor.current) await this.editor.load(this.editor.current.name);
  }

  // --- one picture ---------------------------------------------------------------------------------------------------

  async go(index, { focus = null } = {}) {
    if (!this.editor.mayGoOn()) return;
    this.editor.save();
    if (index < 0 || index >= this.list.names.length) {
      if (!this.list.names.length) this.nothing();
      return;
    }
    this.mark(index);
    const name = this.list.names[index];
    this.editor.group = `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;
    this.show(name);
    this.element.classList.remove("listing");
    if (focus) focus.focus({ preventScroll: true });
    await this.editor.load(name);
    for (const next of [1, 2]) if (index + next < this.list.names.length) this.large.get(this.list.names[index + next]).catch(() => {}); // it is told when it is opened
  }

  /** This picture, whether the filter shows it or not. */
  async find(name) {
    if (this.list.indexOf(name) < 0) await this.setFilter("");
    const index = this.list.indexOf(name);
    if (index >= 0) return this.go(index);
    this.api.toast(`${name} is in the folder no more. You wrote: ${this.editor.unsaved.get(name)?.text ?? ""}`, { seconds: 20 });
  }

  mark(index) {
    this.index = index;
    this.list.mark(index);
    const place = ` · ${(index + 1).toLocaleString()} of ${this.list.names.length.toLocaleString()}`;
    this.place.replaceChildren(el("bdi", {}, this.list.names[index]), el("span", {}, place));
    this.place.title = this.list.names[index];
  }

  step(by) {
    const index = this.index + by;
    if (index < 0 || index >= this.list.names.length) return this.api.say(by > 0 ? "The last picture" : "The first picture");
    return this.go(index, { focus: document.activeElement === this.editor.area ? this.editor.area : null });
  }

  /** The name of the picture that is shown. */
  get name() {
    return this.list.names[this.index];
  }

  nothing() {
    this.index = -1;
    this.place.textContent = "";
    this.figure.replaceChildren(el("p", { class: "soft" }, this.filter.value ? "No picture is like that." : "There are no pictures in this folder."));
    this.editor.empty();
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

  async turn(way) {
    await this.editor.save();
    try {
      const answer = await this.api.json(`review/api/${way}`, {});
      const one = answer.examples[0];
      const left = answer.skipped.length ? `; ${answer.skipped.length} were changed since and stay` : "";
      this.api.toast(`${way === "undo" ? "Taken back" : "Done again"}: ${answer.title}${left}`);
      this.list.refresh();
      this.draw(answer.state);
      const index = one ? this.list.indexOf(one.name) : -1;
      if (index >= 0 && index !== this.index) await this.go(index);
      else if (this.editor.current) await this.editor.load(this.editor.current.name);
      this.drawers.refresh();
    } catch (error) {
      this.api.toast(error.message);
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
    if (event.defaultPrevented || isComposing(event) || document.querySelector("dialog[open]")) return;
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
    if (command && key.toLowerCase() === "s") return done(() => this.editor.save());
    if (command && ["z", "y"].includes(key.toLowerCase())) {
      // While a text is being changed the browser's own undo takes letters back; afterwards ours takes the edit back.
      if (typing && (within !== this.editor.area || this.editor.hasTyped())) return;
      return done(() => this.turn(shiftKey || key.toLowerCase() === "y" ? "redo" : "undo"));
    }
    if (command) return;
    if (altKey && (key === "ArrowDown" || key === "ArrowUp")) return done(() => this.step(key === "ArrowDown" ? 1 : -1));
    const digit = /^Digit([1-9])$/.exec(event.code)?.[1] ?? key; // a Mac writes ¡ for Alt+1
    if (altKey && /^[1-9]$/.test(digit)) return done(() => this.editor.take(Number(digit) - 1));
    if (altKey || typing) return;
    const inDrawer = within?.closest(".review-drawer, .toasts");
    if (inDrawer && (key === "Enter" || key === " " || key.startsWith("Arrow"))) return;
    if (/^[1-9]$/.test(key)) return done(() => this.editor.take(Number(key) - 1));
    if (key === "Enter" && within?.closest("button, a")) return; // it is pressed
    const action = {
      j: () => this.step(1),
      ArrowDown: () => this.step(1),
      k: () => this.step(-1),
      ArrowUp: () => this.step(-1),
      e: () => this.editor.edit(),
      Enter: () => this.editor.edit(),
      r: () => this.editor.ask(),
      x: () => this.index >= 0 && this.list.select(this.index),
      b: () => this.drawers.open("bulk"),
      t: () => this.drawers.open("terms"),
      h: () => this.drawers.open("history"),
      "/": () => (this.filter.focus(), this.filter.select()),
      "?": () => this.showDialog(help()),
      Home: () => this.go(0),
      End: () => this.go(this.list.names.length - 1),
    }[key.length === 1 ? key.toLowerCase() : key];
    if (action) done(action);
  }

  escape(event) {
    if (this.element.classList.contains("listing")) this.element.classList.remove("listing");
    else if (document.activeElement === this.editor.area) this.editor.save();
    else if (this.drawers.shown) return this.drawers.close();
    else if (this.list.selected.size) this.list.selectNone();
    else return;
    event.preventDefault();
    this.rest();
  }

  /** The focus out of what is typed into: to the list, or to the picture where there is no room for the list. */
  rest() {
    (this.list.element.clientHeight ? this.list.element : this.figure).focus({ preventScroll: true });
  }

  async saveAndGoOn() {
    const typing = document.activeElement === this.editor.area;
    const last = this.index + 1 >= this.list.names.length;
    const saved = this.editor.save();
    if (last) {
      await saved;
      return this.api.toast("That was the last picture.");
    }
    await this.go(this.index + 1, { focus: typing ? this.editor.area : null });
  }

  /** A dialog that goes when it is closed; the focus returns to where it was. */
  async showDialog(dialog) {
    const before = document.activeElement;
    closesBeside(dialog);
    await modal(dialog);
    if (before?.isConnected && before !== document.body) before.focus({ preventScroll: true });
    else this.rest();
  }
}
