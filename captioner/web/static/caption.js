// Caption: pictures in, a card each: its text, what else the model said, what the file carries, where the model looked.

import { Refused, answer } from "./api.js";
import { attentionPanel } from "./attention.js";
import { button, closesBeside, copyText, el, icon, modal, saveFile, shortName, svg } from "./dom.js";
import { picker } from "./picker.js";
import { commandLine, describe, drawer, inUse, load, store } from "./settings.js";

export function mount(section, api) {
  const view = new Caption(section, api);
  return { shown: (state) => view.shown(state) };
}

class Caption {
  constructor(section, api) {
    this.section = section;
    this.api = api;
    this.items = [];
    this.running = 0;
    this.stopped = false;
    this.number = 0;
    const kept = load(location.hash, api.settings);
    this.state = { ...kept, description: null, hasPictures: () => this.items.length > 0 };
    this.drawer = drawer(api, this.state, {
      changed: () => this.settingsChanged(),
      again: () => this.again(),
    });
    this.build();
    this.listen();
    this.settingsChanged();
  }

  shown(state) {
    store(this.state.model, this.state.values, this.api.settings.models);
    if (state?.settings) this.drawer.open();
  }

  // --- the page ----------------------------------------------------------------------------------------------------

  build() {
    const { root } = this.api.settings;
    this.files = el("input", { type: "file", multiple: true, accept: this.api.acceptedPictures(), id: "files", class: "visually-hidden", tabindex: "-1", "aria-hidden": "true" });
    this.folder = el("input", { type: "file", webkitdirectory: true, id: "folder", class: "visually-hidden", tabindex: "-1", "aria-hidden": "true" });
    this.choose = button("Choose pictures", { picture: "picture", class: "primary", onclick: () => this.files.click() });
    this.drop = el(
      "div",
      { class: "dropzone" },
      frames(),
      el("h1", {}, "What prompt could have made this picture?"),
      el("p", { class: "lead" }, "Drop pictures here, or paste one."),
      el(
        "div",
        { class: "row centre" },
        this.choose,
        button("A folder", { picture: "folder", onclick: () => this.folder.click() }),
        root && button(`From ${root}/`, { picture: "folder", class: "from-root", onclick: () => this.pick() }),
        button("Settings", { picture: "settings", class: "open-settings", onclick: () => this.drawer.open() }),
      ),
      el("p", { class: "note" }, "Pictures go to this server and nowhere else."),
    );
    this.bar = el("progress", { max: 1, value: 0, "aria-label": "Progress" });
    this.count = el("span", { class: "count number" });
    this.stop = button("Stop", { picture: "stop", class: "stop", onclick: () => this.toggle() });
    this.renew = button("Caption again", { picture: "retry", class: "renew", onclick: () => this.again() });
    this.menu = this.downloads();
    this.chosen = el("span", { class: "chosen" });
    const settings = button("Settings", { picture: "settings", class: "open-settings", onclick: () => this.drawer.open() });
    settings.append(this.chosen);
    this.toolbar = el(
      "div",
      { class: "work", role: "group", "aria-label": "Pictures", hidden: true },
      el("h1", { class: "visually-hidden" }, "Caption"),
      el("div", { class: "progress" }, this.count, this.bar),
      this.stop,
      this.renew,
      el("span", { class: "grow" }),
      button("Add", { picture: "picture", title: "Add pictures", onclick: () => this.files.click() }),
      root && button(`${root}/`, { picture: "folder", title: `Pictures of ${root}`, class: "from-root", onclick: () => this.pick() }),
      settings,
      this.menu,
      button("Clear", { picture: "close", quiet: true, class: "clear", onclick: () => this.clear() }),
    );
    this.gallery = el("div", { class: "gallery" });
    this.command = el("code", {});
    const copy = button("Copy the command", { picture: "copy", hideLabel: true, onclick: () => this.copy(this.command.textContent, "Command copied.") });
    const line = el("div", { class: "command-line" }, el("span", { class: "note" }, "The same in a terminal"), this.command, copy);
    this.section.replaceChildren(this.files, this.folder, this.drop, this.toolbar, this.gallery, line);
  }

  downloads() {
    const item = (label, kind, name, help) =>
      el("button", { type: "button", class: "quiet", "data-kind": kind, onclick: () => this.download(kind, name) }, el("span", {}, label, el("small", {}, help)));
    const menu = el(
      "details",
      { class: "menu download" },
      el("summary", { class: "button" }, icon("download"), el("span", {}, "Download")),
      el(
        "div",
        { class: "card" },
        item("Sidecars", "sidecars", "captions.zip", "photo.txt for photo.png, as a .zip"),
        item("JSON lines", "jsonl", "captions.jsonl", "with candidates and scores"),
        item("Table", "csv", "captions.csv", "for spreadsheets"),
      ),
    );
    const close = () => (menu.open = false);
    menu.addEventListener("keydown", (event) => event.key === "Escape" && menu.open && (close(), menu.firstChild.focus()));
    menu.addEventListener("focusout", (event) => event.relatedTarget && !menu.contains(event.relatedTarget) && close());
    document.addEventListener("click", (event) => menu.contains(event.target) || close());
    return menu;
  }

  listen() {
    const here = () => !this.section.hidden && !document.querySelector("dialog[open]");
    let depth = 0;
    const over = (on) => this.section.classList.toggle("over", on);
    window.addEventListener("dragenter", (event) => {
      if (!here() || !event.dataTransfer?.types.includes("Files")) return;
      depth += 1;
      over(true);
    });
    window.addEventListener("dragleave", () => over((depth = Math.max(0, depth - 1)) > 0));
    window.addEventListener("drop", (event) => {
      depth = 0;
      over(false);
      if (!here() || !event.dataTransfer) return;
      dropped(event.dataTransfer, this.api.isPicture).then((files) => this.add(files));
    });
    document.addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!here() || files.length === 0) return;
      event.preventDefault();
      this.add(files.map((file) => ({ file, name: file.name || "pasted.png" })));
    });
    window.addEventListener("beforeunload", (event) => this.items.some((item) => isWritten(item) && item.text !== item.taken) && event.preventDefault());
    this.files.addEventListener("change", () => this.taken(this.files, (file) => file.name));
    this.folder.addEventListener("change", () => this.taken(this.folder, (file) => file.webkitRelativePath || file.name, true));
  }

  taken(field, nameOf, onlyPictures = false) {
    const files = [...field.files].filter((file) => !onlyPictures || this.api.isPicture(file.name));
    field.value = ""; // the same file may be chosen again
    this.add(files.map((file) => ({ file, name: nameOf(file) })));
  }

  pick() {
    picker(this.api).then((paths) => {
      if (!paths) return;
      this.add(paths.map((path) => ({ path, name: path })));
    });
  }

  // --- settings ----------------------------------------------------------------------------------------------------

  /** Until it is known what the chosen model can be asked; another may be chosen meanwhile. */
  async described() {
    while (!this.state.description) {
      const { model } = this.state;
      const description = await describe(this.api, model);
      if (this.state.model === model) this.state.description = description;
    }
  }

  async settingsChanged() {
    const { model } = this.state;
    store(model, this.state.values, this.api.settings.models);
    this.showSettings();
    if (this.state.description) return;
    try {
      await this.described();
      this.showSettings();
    } catch (error) {
      this.api.toast(`${model}: ${error.message}`);
    }
  }

  asked() {
    return { model: this.state.model, ...inUse(this.state.values, this.state.description) };
  }

  showSettings() {
    const { model, ...values } = this.asked();
    const changed = Object.keys(values).length;
    const several = this.api.settings.models.length > 1;
    this.chosen.textContent = [several && shortName(model), changed > 0 && `${changed} set`].filter(Boolean).join(" · ");
    this.command.textContent = commandLine(model, this.api.settings.default, values, this.items.map((item) => item.name));
    this.showWork();
  }

  // --- pictures ----------------------------------------------------------------------------------------------------

  add(given) {
    if (given.length === 0) return;
    const names = new Set(this.items.map((item) => item.name));
    for (const one of given) {
      const item = { ...one, id: (this.number += 1), name: unique(one.name, names), status: "waiting", row: null, text: "" };
      names.add(item.name);
      item.card = new Card(item, this);
      this.items.push(item);
      this.gallery.append(item.card.node);
    }
    this.stopped = false;
    this.api.say(given.length === 1 ? `${given[0].name} added` : `${given.length} pictures added`);
    this.arrange();
    this.pump();
  }

  arrange() {
    const before = document.activeElement;
    this.section.classList.toggle("filled", this.items.length > 0);
    this.gallery.classList.toggle("single", this.items.length === 1);
    if (this.items.length > 1) for (const item of this.items) item.card.makeRoom();
    this.drop.hidden = this.items.length > 0;
    this.toolbar.hidden = this.items.length === 0;
    this.showSettings();
    if (before && before !== document.body && !before.isConnected) (this.items[0]?.card.first ?? this.choose).focus();
    else if (this.drop.hidden && this.drop.contains(before)) this.toolbar.querySelector("button:not([hidden])").focus();
  }

  pump() {
    while (!this.stopped && this.running < this.api.settings.at_once) {
      const item = this.items.find((one) => one.status === "waiting");
      if (!item) break;
      this.running += 1;
      this.ask(item).finally(() => {
        this.running -= 1;
        this.pump();
        if (this.running === 0 && !this.stopped) this.ended();
      });
    }
    this.showWork();
  }

  async ask(item) {
    const abort = new AbortController();
    const { signal } = abort;
    Object.assign(item, { status: "running", abort });
    item.card.draw();
    try {
      await this.described();
      const { attention } = this.state.description;
      const asked = this.asked();
      const blob = await this.content(item, signal);
      const row = await answer("v1/generate", blob, item.name, asked, signal);
      Object.assign(item, { status: "done", row: { ...row, file: item.name }, text: row.text, asked: JSON.stringify(asked), settings: asked });
      item.hasAttention = attention && row.source === "model";
      item.card.draw();
      if (item.carried === undefined) await this.read(item, blob, signal);
    } catch (error) {
      if (item.abort !== abort) return; // it has been asked for anew
      if (error.name === "AbortError") item.status = item.status === "done" ? "done" : "waiting";
      else if (item.status !== "done") Object.assign(item, { status: "failed", reason: error.message });
      item.card.draw();
    }
  }

  /** The bytes; of a picture of the server's folder they are fetched when they are needed. */
  async content(item, signal) {
    if (item.file) {
      const { max_bytes: most } = this.api.settings;
      if (item.file.size > most) throw new Refused(413, `The file is larger than this server takes (${Math.round(most / 1e6)} MB).`);
      return item.file;
    }
    return (await this.api.request(`page/file?path=${encodeURIComponent(item.path)}`, { signal })).blob();
  }

  async read(item, blob, signal) {
    try {
      item.carried = await answer("v1/read", blob, item.name, {}, signal);
    } catch (error) {
      if (!(error instanceof Refused)) throw error;
      item.carried = null; // it carries nothing
    }
    item.card.draw();
  }

  again(items = this.items) {
    const written = items.filter(isWritten).map((item) => [item, { ...item, abort: null }]);
    if (written.length) {
      const undo = () => written.forEach(([item, before]) => this.putBack(item, before));
      this.api.toast(written.length === 1 ? "Your text is replaced" : `${written.length} of your texts are replaced`, { undo });
    }
    for (const item of items) {
      item.abort?.abort();
      item.status = "waiting";
      item.card.forget();
      item.card.draw();
    }
    this.stopped = false;
    this.pump();
  }

  /** As it was before it was asked about anew. */
  putBack(item, before) {
    item.abort?.abort();
    Object.assign(item, before);
    item.card.drawn = null; // the model may have said the same once more
    item.card.draw();
  }

  toggle() {
    this.stopped = !this.stopped;
    if (this.stopped) for (const item of this.items) if (item.status === "running") item.abort.abort();
    this.api.say(this.stopped ? "Stopped" : "Going on");
    this.pump();
  }

  remove(item) {
    item.abort?.abort();
    const index = this.items.indexOf(item);
    this.items.splice(index, 1);
    const next = this.items[Math.min(index, this.items.length - 1)];
    item.card.node.remove();
    this.arrange();
    (next?.card.first ?? this.choose).focus();
    this.api.toast(`${item.name} removed`, { undo: () => this.bring([item], index) });
  }

  clear() {
    const { items } = this;
    for (const item of items) item.abort?.abort();
    this.items = [];
    this.gallery.replaceChildren();
    this.arrange();
    this.choose.focus();
    this.api.toast(items.length === 1 ? "1 picture removed" : `${items.length} pictures removed`, { undo: () => this.bring(items, 0) });
  }

  bring(items, index) {
    this.items.splice(index, 0, ...items);
    this.gallery.replaceChildren(...this.items.map((item) => item.card.node));
    this.arrange();
    items[0].card.first.focus();
    this.pump();
  }

  // --- how it goes -------------------------------------------------------------------------------------------------

  showWork() {
    const of = (status) => this.items.filter((item) => item.status === status).length;
    const [done, failed, left] = [of("done"), of("failed"), of("waiting") + of("running")];
    const all = this.items.length;
    this.bar.max = Math.max(all, 1);
    this.bar.value = all - left;
    this.bar.classList.toggle("over", left === 0);
    this.count.textContent = `${done.toLocaleString()} of ${all.toLocaleString()}${failed ? ` · ${failed.toLocaleString()} failed` : ""}`;
    const now = JSON.stringify(this.asked());
    const isOld = left === 0 && this.items.some((item) => item.status === "done" && item.asked !== now);
    this.swap(this.stop, left > 0);
    this.swap(this.renew, isOld);
    this.stop.replaceChildren(icon(this.stopped ? "retry" : "stop"), el("span", {}, this.stopped ? "Go on" : "Stop"));
    this.menu.classList.toggle("none", done === 0);
  }

  /** Shown or not; what has the focus hands it on before it goes. */
  swap(control, on) {
    if (!on && document.activeElement === control) this.menu.firstChild.focus();
    control.hidden = !on;
  }

  ended() {
    const failed = this.items.filter((item) => item.status === "failed").length;
    const done = this.items.length - failed;
    this.api.say(`${done} ${done === 1 ? "caption" : "captions"} done${failed ? `, ${failed} failed` : ""}`);
    this.showWork();
  }

  // --- out of here -------------------------------------------------------------------------------------------------

  async copy(text, words, item = null) {
    try {
      await copyText(text);
      if (item) item.taken = text;
      this.api.toast(words, { seconds: 2 });
    } catch {
      this.api.toast("The browser did not let it be copied.");
    }
  }

  async download(kind, name) {
    this.menu.open = false;
    this.menu.firstChild.focus();
    const done = this.items.filter((item) => item.status === "done");
    const rows = done.map(({ row, text }) => (kind === "sidecars" ? { file: row.file, text } : { ...row, text }));
    if (rows.length === 0) {
      this.api.toast("There is no caption yet.");
      return;
    }
    try {
      const response = await this.api.request("page/download", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ kind, rows }) });
      saveFile(name, await response.blob());
      done.forEach((item, index) => (item.taken = rows[index].text));
      this.api.say(`${name} downloaded`);
    } catch (error) {
      this.api.toast(error.message);
    }
  }
}

// --- a card ----------------------------------------------------------------------------------------------------------

class Card {
  constructor(item, view) {
    this.item = item;
    this.view = view;
    this.panel = el("div", { class: "panel", id: `panel-${item.id}` });
    this.chips = el("div", { class: "chips" });
    this.slot = el("div", { class: "slot" });
    this.actions = el("div", { class: "row actions", tabindex: "-1" });
    this.size = el("span", { class: "note number size" });
    this.first = button(`Remove ${item.name}`, { picture: "close", hideLabel: true, onclick: () => view.remove(item) });
    this.frame = this.makeFrame();
    const title = el("h2", { class: "name", id: `name-${item.id}` }, item.name.split("/").at(-1));
    title.title = item.name;
    this.node = el(
      "article",
      { class: "card picture", "aria-labelledby": `name-${item.id}` },
      this.frame,
      el("div", { class: "body" }, el("header", {}, title, this.size, this.first), this.slot, this.actions, this.chips, this.panel),
    );
    this.draw();
  }

  makeFrame() {
    const { item } = this;
    this.image = el("img", { alt: "", decoding: "async", loading: "lazy" });
    this.image.addEventListener("load", () => {
      if (item.file) this.size.textContent = `${this.image.naturalWidth} × ${this.image.naturalHeight}`;
      frame.style.setProperty("--ratio", String(this.image.naturalWidth / this.image.naturalHeight));
    });
    this.image.addEventListener("error", () => frame.classList.add("unseen"), { once: true });
    this.image.src = item.file ? URL.createObjectURL(item.file) : `page/file?small=true&path=${encodeURIComponent(item.path)}`;
    const frame = el("button", { type: "button", class: "frame", "aria-label": `Show ${item.name} large`, onclick: () => this.enlarge() }, this.image, el("span", { class: "no-preview" }, icon("picture"), "no preview"));
    return frame;
  }

  enlarge() {
    const { item } = this;
    const source = item.file ? this.image.src : `page/file?path=${encodeURIComponent(item.path)}`;
    const image = el("img", { src: source, alt: item.text || item.name });
    image.addEventListener("error", () => (image.src = this.image.src), { once: true }); // the small one is a JPEG
    const dialog = el(
      "dialog",
      { class: "lightbox", "aria-label": item.name },
      image,
      el("p", {}, item.text),
      button("Close", { picture: "close", hideLabel: true, onclick: () => dialog.close() }),
    );
    closesBeside(dialog);
    modal(dialog);
  }

  /** What belongs to the text that was: candidates, attention. */
  forget() {
    this.attention = null;
    this.open(null);
  }

  draw() {
    const { item } = this;
    const state = `${item.status} ${item.row ? JSON.stringify(item.row) : ""} ${item.carried ? 1 : 0} ${item.reason ?? ""}`;
    if (state === this.drawn) return;
    this.drawn = state;
    this.node.dataset.status = item.status;
    this.node.setAttribute("aria-busy", String(item.status === "running"));
    const hadFocus = this.node.contains(document.activeElement);
    if (item.status === "failed") this.drawFailed();
    else if (item.status === "done") this.drawText();
    else this.drawWaiting();
    this.drawChips();
    if (hadFocus && !this.node.contains(document.activeElement)) this.actions.focus(); // no button: a second Enter does nothing
    this.view.showWork();
  }

  drawWaiting() {
    const words = this.item.status === "running" ? "Captioning" : "Waiting";
    this.slot.replaceChildren(el("div", { class: "skeleton" }, el("i"), el("i"), el("i"), el("span", { class: "visually-hidden" }, words)));
    this.actions.replaceChildren(el("span", { class: "note" }, `${words} …`));
  }

  drawFailed() {
    const { item, view } = this;
    this.slot.replaceChildren(el("p", { class: "warning" }, item.reason));
    this.actions.replaceChildren(button("Try again", { picture: "retry", class: "retry", onclick: () => view.again([item]) }));
  }

  drawText() {
    const { item, view } = this;
    if (!this.slot.querySelector("textarea")) {
      const area = el("textarea", { class: "text", "aria-label": `Text of ${item.name}`, spellcheck: "false", rows: 2 });
      area.addEventListener("input", () => this.edited(area.value));
      new ResizeObserver(() => this.grow()).observe(area); // another width, or the view is shown at last
      this.slot.replaceChildren(area);
    }
    this.area = this.slot.firstChild;
    if (this.area.value !== item.text) this.area.value = item.text;
    this.grow();
    this.original = button("Model's text", { picture: "retry", quiet: true, class: "original", onclick: () => this.put(item.row.text) });
    const compare = button("Compare", { picture: "compare", quiet: true, class: "to-compare", onclick: () => this.compare() });
    this.actions.replaceChildren(
      button("Copy", { picture: "copy", class: "copy", onclick: () => view.copy(item.text, "Copied.", item) }),
      button("Again", { picture: "retry", quiet: true, class: "again", onclick: () => view.again([item]) }),
      compare,
      this.original,
    );
    this.edited(item.text);
  }

  edited(text) {
    this.item.text = text;
    this.original.hidden = text === this.item.row.text;
    this.grow();
  }

  put(text) {
    this.area.value = text;
    this.edited(text);
    this.area.focus();
  }

  /** As high as its text, where the browser does not do that by itself. */
  grow() {
    if (CSS.supports("field-sizing", "content")) return;
    requestAnimationFrame(() => {
      this.area.style.height = "auto";
      this.area.style.height = `${this.area.scrollHeight + 2}px`;
    });
  }

  compare() {
    const { item } = this;
    const other = item.text !== item.row.text ? { name: "As the model wrote it", text: item.row.text } : item.carried?.prompt ? { name: "In the file", text: item.carried.prompt } : { name: "Next candidate", text: item.row.candidates[1]?.text ?? "" };
    this.view.api.open("compare", { left: { name: item.name, text: item.text }, right: other });
  }

  // --- below the text ------------------------------------------------------------------------------------------------

  drawChips() {
    const { item } = this;
    const chips = [];
    if (item.status === "done") {
      const { row } = item;
      if (row.source === "metadata") chips.push(el("span", { class: "badge" }, "from the file"));
      if (row.candidates.length > 1) chips.push(this.chip("candidates", `${row.candidates.length} candidates`, () => this.candidates()));
      if (item.carried) chips.push(this.chip("carried", "In the file", () => this.carried()));
      if (item.hasAttention) chips.push(this.chip("attention", "Where it looked", () => (this.attention ??= attentionPanel(this, item))));
      if (this.view.api.settings.similar) chips.push(this.chip("similar", "Similar", () => this.similar()));
    }
    this.chips.replaceChildren(...chips);
    if (!chips.some((chip) => chip.dataset.panel === this.shown)) this.open(null);
    else this.open(this.shown, true);
    const isAlone = this.view.items.length === 1 && chips[0]?.dataset.panel === "candidates";
    if (isAlone && !this.shown) {
      this.open("candidates", false, () => this.candidates()); // there is room for it
      this.openedItself = true;
    }
  }

  chip(name, label, make) {
    return el(
      "button",
      { type: "button", class: "chip", "data-panel": name, "aria-expanded": "false", "aria-controls": this.panel.id, onclick: () => ((this.openedItself = false), this.open(this.shown === name ? null : name, false, make)) },
      label,
    );
  }

  open(name, keep = false, make = null) {
    const before = this.shown;
    this.shown = name;
    for (const chip of this.chips.children) if (chip.dataset.panel) chip.setAttribute("aria-expanded", String(chip.dataset.panel === name));
    if (keep || (before === name && name === null && !this.panel.firstChild)) return;
    this.frame.querySelector("canvas")?.remove();
    this.panel.replaceChildren(...(name === null ? [] : [make()]));
  }

  /** Others have come: what was opened because there was room for it closes. */
  makeRoom() {
    if (this.openedItself) this.open(null);
    this.openedItself = false;
  }

  candidates() {
    const { item } = this;
    const best = Math.max(...item.row.candidates.map((one) => Math.exp(one.score)));
    return el(
      "ol",
      { class: "candidates" },
      item.row.candidates.map((candidate) => {
        const probability = Math.exp(candidate.score);
        const share = el("i", { class: "share" });
        share.style.width = `${(100 * probability) / best}%`;
        const use = button("Use", { quiet: true, class: "use", "aria-label": `Use: ${candidate.text}`, onclick: () => this.put(candidate.text) });
        const figure = el("span", { class: "number note", title: `log-probability per token: ${candidate.score.toFixed(3)}` }, probability.toFixed(3));
        return el("li", {}, el("span", { class: "said" }, candidate.text || "(nothing)"), el("span", { class: "meter", "aria-hidden": "true" }, share), figure, use);
      }),
    );
  }

  carried() {
    const names = { negative_prompt: "Negative", tool: "Tool", model: "Model", sampler: "Sampler", steps: "Steps", seed: "Seed", cfg_scale: "CFG scale", size: "Size", model_hash: "Model hash", clip_skip: "Clip skip", loras: "LoRAs" };
    const { prompt, ...rest } = this.item.carried;
    const rows = Object.entries(names).filter(([name]) => rest[name] !== null && rest[name] !== undefined && rest[name] !== "");
    return el(
      "div",
      { class: "carried" },
      prompt && el("blockquote", {}, prompt),
      prompt && el("div", { class: "row" }, button("Use it", { onclick: () => this.put(prompt), class: "use-carried" }), button("Compare", { picture: "compare", quiet: true, onclick: () => this.view.api.open("compare", { left: { name: this.item.name, text: this.item.text }, right: { name: "In the file", text: prompt } }) })),
      el("dl", {}, rows.map(([name, label]) => [el("dt", {}, label), el("dd", {}, String(rest[name]))])),
      el("p", { class: "note" }, "Somebody wrote this into the file; it proves nothing."),
    );
  }

  similar() {
    const { item, view } = this;
    const list = el("ol", { class: "similar" }, el("li", { class: "note" }, "Looking …"));
    view
      .content(item)
      .then((blob) => answer("v1/similar", blob, item.name, { count: 5 }))
      .then(async ({ similar }) => {
        const { paths } = await view.api.json("page/near", { pictures: similar.map((near) => String(near.picture)) });
        list.replaceChildren(...similar.map((near, index) => neighbour(near, paths[index])));
      })
      .catch((error) => list.replaceChildren(el("li", { class: "warning" }, error.message)));
    return list;
  }
}

// --- small things ----------------------------------------------------------------------------------------------------

/** Whether the text is not the model's, but somebody's own. */
function isWritten({ status, text, row }) {
  return status === "done" && text !== row.text;
}

/** A reference picture: small, where the server may show it, and its prompt. */
function neighbour(near, path) {
  const small = path !== null && el("img", { src: `page/file?small=true&path=${encodeURIComponent(path)}`, alt: "", loading: "lazy" });
  return el(
    "li",
    {},
    small,
    el("div", {}, el("span", { class: "said" }, near.prompt), el("span", { class: "note path" }, String(near.picture))),
    el("span", { class: "number note" }, near.similarity.toFixed(3)),
  );
}

function unique(name, names) {
  const [, stem, ending] = /^(.*?)(\.[^./]*)?$/s.exec(name);
  let made = name;
  for (let number = 2; names.has(made); number += 1) made = `${stem}-${number}${ending ?? ""}`;
  return made;
}

/** What was let go of over the page; folders are looked into. */
async function dropped(transfer, isPicture) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return [...transfer.files].map((file) => ({ file, name: file.name }));
  const found = [];
  for (const entry of entries) await walk(entry, "", found, isPicture);
  return found;
}

async function walk(entry, folder, found, isPicture) {
  const name = folder + entry.name;
  if (entry.isFile) {
    if (folder === "" || isPicture(entry.name)) found.push({ name, file: await new Promise((resolve, reject) => entry.file(resolve, reject)) });
    return;
  }
  if (entry.name.startsWith(".")) return;
  const reader = entry.createReader();
  const children = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (some.length === 0) break;
    children.push(...some);
  }
  children.sort((a, b) => a.name.localeCompare(b.name, undefined, { numeric: true }));
  for (const child of children) await walk(child, `${name}/`, found, isPicture);
}

/** Three frames on a wall. */
function frames() {
  const shapes = [
    ["rect", { x: 14, y: 30, width: 66, height: 66, rx: 5, class: "paper" }],
    ["path", { d: "M20 88l18-22 12 13 10-9 14 18z", class: "hill" }],
    ["circle", { cx: 58, cy: 48, r: 6, class: "sun" }],
    ["rect", { x: 92, y: 10, width: 76, height: 96, rx: 5, class: "paper front" }],
    ["path", { d: "M98 98l22-32 14 18 10-12 18 26z", class: "hill" }],
    ["path", { d: "M98 98l12-12 18 12z", class: "hill dark" }],
    ["circle", { cx: 146, cy: 34, r: 9, class: "sun" }],
    ["rect", { x: 180, y: 36, width: 66, height: 54, rx: 5, class: "paper" }],
    ["path", { d: "M192 50h42M192 60h34M192 70h38M192 80h18", class: "words" }],
  ];
  return svg("svg", { viewBox: "0 0 260 120", class: "frames", "aria-hidden": "true" }, ...shapes.map((shape) => svg(...shape)));
}
