// Captioning many pictures of the folder: several are asked about at a time, each is saved as it comes, and all of them
// are one step for undo. It can be stopped; what fails is a row with its reason.

import { button, el } from "./dom.js";

export class Run {
  constructor(review) {
    this.review = review;
    this.element = el("div", { class: "review-run", hidden: true });
  }

  /** Which pictures, and whether texts that are there are replaced. */
  async ask() {
    if (this.stopper) return this.element.querySelector("button")?.focus();
    const { api, list, filter } = this.review;
    const { model } = this.review.editor;
    await this.review.editor.save();
    const empty = (await api.json("review/api/view", { filter: "is:empty" })).names;
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
    const dialog = el("dialog", { class: "review-dialog", "aria-labelledby": "review-run-title" });
    const start = el("button", { class: "primary", type: "submit" }, "Start");
    const radios = options.map(([key, words, names], index) =>
      el("label", {}, el("input", { type: "radio", name: "which", value: key, checked: index === first, disabled: !names.length }), el("span", {}, words)),
    );
    start.disabled = first < 0;
    dialog.append(
      el(
        "form",
        {
          method: "dialog",
          onsubmit: () => {
            const key = new FormData(dialog.querySelector("form")).get("which");
            const [, , names] = options.find(([one]) => one === key);
            this.start(names, models.value || null);
          },
        },
        el("h2", { id: "review-run-title" }, "Caption the folder"),
        el("div", { class: "review-choice", role: "radiogroup", "aria-label": "Which pictures" }, ...radios),
        models,
        el("p", { class: "note" }, "Each text is saved as it comes. Texts that are there are replaced; one undo brings all of them back."),
        el("div", { class: "row end" }, button("Cancel", { quiet: true, onclick: () => dialog.close() }), start),
      ),
    );
    this.review.showDialog(dialog);
  }

  async start(names, model) {
    const { api, list, editor } = this.review;
    this.stopper = new AbortController();
    this.tally = { done: 0, failed: 0, of: names.length };
    const group = `run-${Date.now().toString(36)}`;
    const waiting = [...names];
    this.build();
    api.say(`Captioning ${names.length} pictures`);
    const one = async () => {
      while (waiting.length && !this.stopper.signal.aborted) await this.caption(waiting.shift(), model, group);
    };
    await Promise.all(Array.from({ length: Math.min(api.settings.at_once ?? 4, names.length) }, one));
    const { done, failed } = this.tally;
    const stopped = this.stopper.signal.aborted ? "Stopped: " : "";
    this.stopper = null;
    this.element.hidden = true;
    const words = `${stopped}${done.toLocaleString()} captioned${failed ? `, ${failed.toLocaleString()} failed` : ""}`;
    api.toast(words, { undo: done ? () => this.review.turn("undo") : null, seconds: 12 });
    list.refresh();
    await this.review.settle();
    if (editor.current) await editor.load(editor.current.name);
  }

  async caption(name, model, group) {
    const { api, list, editor } = this.review;
    const { signal } = this.stopper;
    try {
      const { text: before } = await api.json("review/api/row", { name });
      const row = await api.json("review/api/ask", { name, model }, { signal });
      const title = `Caption ${this.tally.of.toLocaleString()} pictures with ${row.model ?? "the model"}`;
      const answer = await api.json("review/api/edit", { name, text: row.text, before: before ?? "", group, title });
      this.tally[answer.conflict ? "failed" : "done"] += 1; // somebody wrote another text meanwhile
      list.put(answer.row);
      if (editor.current?.name === name && !editor.isDirty()) editor.load(name);
    } catch (error) {
      if (error.name === "AbortError") return;
      this.tally.failed += 1;
      if (error.status === 0) this.stopper.abort(); // the server is gone
      else list.put(await api.json("review/api/fail", { name, reason: error.message }).catch(() => ({ name, text: null, score: null, tokens: 0, problem: error.message, edited: false })));
    }
    this.draw();
  }

  build() {
    this.bar = el("progress", { max: this.tally.of, value: 0, "aria-label": "Captioned" });
    this.words = el("span", { class: "number" });
    this.element.replaceChildren(this.words, this.bar, button("Stop", { picture: "stop", onclick: () => this.stopper?.abort() }));
    this.element.hidden = false;
    this.draw();
  }

  draw() {
    const { done, failed, of } = this.tally;
    this.bar.value = done + failed;
    this.words.textContent = `${(done + failed).toLocaleString()} of ${of.toLocaleString()}${failed ? ` · ${failed.toLocaleString()} failed` : ""}`;
  }
}
