// Captioning many pictures of the folder. The server does it, and goes on when this page is closed; here it is begun,
// followed and stopped. Each text is saved as it comes, and all of them are one step for undo. The model is asked by the
// settings that Caption has.

import { button, el } from "./dom.js";
import { inWords, settingsFor } from "./settings.js";

const PAUSE = 300; // milliseconds between two looks at how far it is
const EXISTING = [
  ["overwrite", "are replaced"],
  ["skip", "stay"],
  ["append", "stay, the new one behind"],
  ["prepend", "stay, the new one before"],
];

export class Run {
  constructor(review) {
    this.review = review;
    this.element = el("div", { class: "review-run", hidden: true });
  }

  /** Which pictures, by which settings, and what becomes of texts that are there. */
  async ask() {
    if (!this.element.hidden) return this.element.querySelector("button")?.focus();
    const { api, list, filter } = this.review;
    const { model } = this.review.editor;
    await this.review.editor.save();
    let empty;
    try {
      empty = (await api.json("review/api/view", { filter: "is:empty" })).names;
    } catch (error) {
      return api.toast(error.message);
    }
    const shown = [...list.names];
    const selected = [...list.selected];
    const options = [
      ["empty", `The ${empty.length.toLocaleString()} without a text`, empty],
      ["selected", `The ${selected.length.toLocaleString()} selected`, selected],
      ["shown", filter.value.trim() ? `The ${shown.length.toLocaleString()} shown` : `All ${shown.length.toLocaleString()}`, shown],
    ].filter(([key, , names]) => names.length || key === "empty");
    const first = options.findIndex(([, , names]) => names.length);
    const models = model.cloneNode(true);
    models.hidden = models.options.length < 2;
    models.value = model.value;
    models.id = "review-run-model";
    models.addEventListener("change", () => this.showSettings(settings, models.value));
    const dialog = el("dialog", { class: "review-dialog", "aria-labelledby": "review-run-title" });
    const start = el("button", { class: "primary", type: "submit" }, "Start");
    const radios = options.map(([key, words, names], index) =>
      el("label", {}, el("input", { type: "radio", name: "which", value: key, checked: index === first, disabled: !names.length }), el("span", {}, words)),
    );
    const existing = el("select", { id: "review-existing" }, ...EXISTING.map(([value, words]) => el("option", { value }, words)));
    const which = () => new FormData(dialog.querySelector("form")).get("which");
    const showExisting = () => (existing.disabled = which() === "empty");
    const settings = el("span", {});
    const change = button("Caption's settings", { picture: "settings", onclick: () => (dialog.close(), api.open("caption", { settings: true })) });
    const wrong = el("p", { class: "review-wrong", role: "alert", hidden: true });
    const submit = async (event) => {
      event.preventDefault();
      start.disabled = true;
      try {
        const [, , names] = options.find(([key]) => key === which());
        await this.start(names, models.value, existing.disabled ? "skip" : existing.value);
        dialog.close();
      } catch (error) {
        wrong.textContent = error.message;
        wrong.hidden = start.disabled = false;
      }
    };
    start.disabled = first < 0;
    dialog.append(
      el(
        "form",
        { onsubmit: submit },
        el("h2", { id: "review-run-title" }, "Caption the folder"),
        el("div", { class: "review-choice", role: "radiogroup", "aria-label": "Which pictures", onchange: showExisting }, ...radios),
        el("div", { class: "review-field" }, el("label", { for: existing.id }, "Texts that are there"), existing),
        models,
        el("div", { class: "review-asked" }, settings, change),
        el("p", { class: "note" }, "Each text is saved as it comes, and it goes on when this page is closed. One undo brings all texts back."),
        wrong,
        el("div", { class: "row end" }, button("Cancel", { quiet: true, onclick: () => dialog.close() }), start),
      ),
    );
    showExisting();
    this.showSettings(settings, models.value);
    this.review.showDialog(dialog);
  }

  /** What this model will be asked, in one line. */
  async showSettings(line, model) {
    line.dataset.model = model;
    const words = await settingsFor(this.review.api, model).then(inWords, (error) => error.message);
    if (line.dataset.model === model) line.textContent = words || "Everything as the model does by itself";
  }

  async start(names, model, existing) {
    const { api } = this.review;
    const asked = { names, model, on_existing: existing, ...(await settingsFor(api, model)) };
    await api.json("review/api/caption", asked);
    api.say(`Captioning ${names.length} pictures`);
    this.follow(0).catch((error) => api.toast(error.message));
  }

  /** One that is on its way when the page is opened. */
  async find() {
    const { api } = this.review;
    try {
      const { over, done, failed } = await api.json("review/api/captioning");
      if (!over) await this.follow(done + failed);
    } catch (error) {
      api.toast(error.message);
    }
  }

  /** Until it is over; the pictures up to `since` are shown as they are. */
  async follow(since) {
    const { api, list, editor } = this.review;
    this.build();
    try {
      for (let told = { over: false }; !told.over; since = told.since) {
        told = await api.json(`review/api/captioning?since=${since}`);
        for (const row of told.rows) list.put(row);
        if (told.rows.some((row) => row.name === editor.current?.name) && !editor.isDirty()) editor.load(editor.current.name);
        this.draw(told);
        if (told.over) this.tell(told);
        else if (told.rows.length === 0) await new Promise((resolve) => setTimeout(resolve, PAUSE));
      }
    } finally {
      if (this.element.contains(document.activeElement)) this.review.rest();
      this.element.hidden = true;
    }
    list.refresh();
    await this.review.settle();
    if (editor.current) await editor.load(editor.current.name);
  }

  build() {
    const { api } = this.review;
    this.bar = el("progress", { value: 0, "aria-label": "Captioned" });
    this.words = el("span", { class: "number" });
    const stop = button("Stop", { picture: "stop", onclick: () => api.json("review/api/stop", {}).catch((error) => api.toast(error.message)) });
    this.element.replaceChildren(this.words, this.bar, stop);
    this.element.hidden = false;
  }

  draw({ done, failed, total }) {
    this.bar.max = total;
    this.bar.value = done + failed;
    this.words.textContent = `${(done + failed).toLocaleString()} of ${total.toLocaleString()}${failed ? ` · ${failed.toLocaleString()} failed` : ""}`;
  }

  tell({ done, failed, stopped, refused }) {
    const words = `${stopped ? "Stopped: " : ""}${done.toLocaleString()} captioned${failed ? `, ${failed.toLocaleString()} failed` : ""}`;
    this.review.api.toast(refused ?? words, { undo: done ? () => this.review.turn("undo") : null, seconds: refused ? 20 : 12 });
  }
}
