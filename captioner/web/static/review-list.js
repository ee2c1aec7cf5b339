// The list of pictures: only the rows that can be seen exist, however many pictures there are.

import { el, icon } from "./dom.js";

const HEIGHT = 66; // of a row, as in review.css
const BEYOND = 8; // rows drawn above and below what is seen
const ROWS = 120; // asked for at a time
const PICTURES = 400; // kept as addresses of blobs
const AT_ONCE = 4; // small pictures asked for at the same time

/** Small pictures by name: asked for when a row is seen, the newest wish first, dropped when others need the room. */
export class Pictures {
  constructor(api, kind, most = PICTURES) {
    Object.assign(this, { api, kind, most, kept: new Map(), waiting: [], running: 0 });
  }

  /** The address of a picture's blob; rejects with the server's reason. */
  get(name) {
    const known = this.kept.get(name);
    if (known) {
      this.kept.delete(name);
      this.kept.set(name, known); // the one that was used last goes last
      return known.promise;
    }
    const entry = {};
    entry.promise = new Promise((resolve, reject) => this.waiting.push({ name, resolve, reject }));
    entry.promise.then((address) => (entry.address = address), () => this.kept.delete(name));
    this.kept.set(name, entry);
    this.trim();
    this.next();
    return entry.promise;
  }

  trim() {
    for (const [name, entry] of this.kept) {
      if (this.kept.size <= this.most) return;
      this.kept.delete(name);
      if (entry.address) URL.revokeObjectURL(entry.address);
    }
  }

  async next() {
    if (this.running >= AT_ONCE || !this.waiting.length) return;
    const { name, resolve, reject } = this.waiting.pop();
    this.running += 1;
    try {
      const response = await this.api.request(`review/api/${this.kind}?name=${encodeURIComponent(name)}`);
      resolve(URL.createObjectURL(await response.blob()));
    } catch (error) {
      reject(error);
    } finally {
      this.running -= 1;
      this.next();
    }
    this.next();
  }

  /** What nobody waits for any more, because the list has moved on. */
  forget(isWanted) {
    const dropped = this.waiting.filter((one) => !isWanted(one.name));
    this.waiting = this.waiting.filter((one) => isWanted(one.name));
    for (const { name, reject } of dropped) {
      this.kept.delete(name);
      reject(new DOMException("not wanted any more", "AbortError"));
    }
  }
}

export class List {
  /** onopen(index) opens a picture; onselect() is called when the selection has changed; isUnsaved(name) tells of texts. */
  constructor(api, { onopen, onselect, isUnsaved }) {
    Object.assign(this, { api, onopen, onselect, isUnsaved });
    this.names = [];
    this.rows = new Map();
    this.asked = new Set();
    this.current = -1;
    this.selected = new Set();
    this.anchor = -1;
    this.drawn = new Map();
    this.pictures = new Pictures(api, "small");
    this.inner = el("div", { class: "rows", role: "presentation" });
    this.element = el(
      "div",
      {
        class: "review-list",
        role: "listbox",
        tabindex: "0",
        "aria-label": "Pictures",
        "aria-multiselectable": "true",
        onscroll: () => this.draw(),
      },
      this.inner,
    );
    new ResizeObserver(() => this.draw()).observe(this.element);
  }

  /** Other pictures, or the same in another order. */
  show(names) {
    this.names = names;
    this.positions = new Map(names.map((name, index) => [name, index]));
    this.clear();
    this.inner.style.height = `${names.length * HEIGHT}px`;
    this.draw();
  }

  clear() {
    for (const row of this.drawn.values()) row.remove();
    this.drawn.clear();
  }

  indexOf(name) {
    return this.positions?.get(name) ?? -1;
  }

  /** Texts have changed: all rows are asked for anew. */
  refresh() {
    this.rows.clear();
    this.asked.clear();
    this.draw();
  }

  /** One row's newest content. */
  put(row) {
    this.rows.set(row.name, row);
    const index = this.indexOf(row.name);
    if (this.drawn.has(index)) this.fill(this.drawn.get(index), index);
  }

  /** The current picture; scrolled to where it can be seen. */
  mark(index) {
    const before = this.current;
    this.current = index;
    for (const one of [before, index]) if (this.drawn.has(one)) this.fill(this.drawn.get(one), one);
    const top = index * HEIGHT;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top - HEIGHT;
    else if (top + HEIGHT > scrollTop + clientHeight) this.element.scrollTop = top - clientHeight + 2 * HEIGHT;
    this.draw();
    this.element.setAttribute("aria-activedescendant", `row-${index}`);
  }

  /** Take a picture into the selection or out of it; with `range` all between it and the last one. */
  select(index, range = false) {
    if (range && this.anchor >= 0) {
      const [from, to] = [Math.min(this.anchor, index), Math.max(this.anchor, index)];
      for (let one = from; one <= to; one += 1) this.selected.add(this.names[one]);
    } else {
      const name = this.names[index];
      if (!this.selected.delete(name)) this.selected.add(name);
      this.anchor = index;
    }
    this.redraw();
    this.onselect();
  }

  selectNone() {
    this.selected.clear();
    this.redraw();
    this.onselect();
  }

  redraw() {
    for (const [index, row] of this.drawn) this.fill(row, index);
  }

  draw() {
    const { scrollTop, clientHeight } = this.element;
    if (!clientHeight) return; // hidden on a phone
    const from = Math.max(0, Math.floor(scrollTop / HEIGHT) - BEYOND);
    const to = Math.min(this.names.length, Math.ceil((scrollTop + clientHeight) / HEIGHT) + BEYOND);
    for (const [index, row] of this.drawn) {
      if (index < from || index >= to) {
        row.remove();
        this.drawn.delete(index);
      }
    }
    for (let index = from; index < to; index += 1) {
      if (!this.drawn.has(index)) {
        const row = this.make(index);
        this.drawn.set(index, row);
        this.inner.append(row);
        this.fill(row, index);
      }
    }
    this.pictures.forget((name) => this.drawn.has(this.indexOf(name)));
    this.ask(from, to);
  }

  make(index) {
    const row = el("div", { class: "review-row", role: "option", id: `row-${index}`, "aria-setsize": this.names.length, "aria-posinset": index + 1 });
    row.style.top = `${index * HEIGHT}px`;
    row.addEventListener("click", (event) => {
      if (event.target.closest(".pick") || event.ctrlKey || event.metaKey) this.select(index);
      else if (event.shiftKey) this.select(index, true);
      else this.onopen(index);
    });
    row.addEventListener("mousedown", (event) => event.shiftKey && event.preventDefault()); // no text is marked
    const picture = el("img", { alt: "", loading: "lazy", draggable: "false" });
    row.append(
      el("span", { class: "pick", "aria-hidden": "true", title: "Select (X)" }, icon("check")),
      el("span", { class: "thumb" }, picture),
      el("span", { class: "about" }, el("span", { class: "name" }), el("span", { class: "text" })),
      el("span", { class: "signs" }),
    );
    this.pictures.get(this.names[index]).then(
      (address) => (picture.src = address),
      (error) => error.name !== "AbortError" && this.unseen(row, index, error.message),
    );
    return row;
  }

  /** A picture that cannot be opened is a row with the reason. */
  unseen(element, index, reason) {
    element.querySelector(".thumb").replaceChildren(icon("broken"));
    const row = this.rows.get(this.names[index]);
    if (row && !row.problem && !row.text) this.put({ ...row, problem: reason });
  }

  fill(element, index) {
    const name = this.names[index];
    const row = this.rows.get(name);
    element.setAttribute("aria-selected", this.selected.has(name) ? "true" : "false");
    if (index === this.current) element.setAttribute("aria-current", "true");
    else element.removeAttribute("aria-current");
    element.classList.toggle("failed", Boolean(row?.problem));
    element.querySelector(".name").textContent = name;
    const text = element.querySelector(".text");
    text.textContent = row ? row.problem ?? (row.text || "no text yet") : "";
    text.classList.toggle("soft", !row?.text);
    element.querySelector(".signs").replaceChildren(...(row ? signs(row, this.isUnsaved(name)) : []));
  }

  async ask(from, to) {
    const wanted = [];
    for (let index = from; index < to && wanted.length < ROWS; index += 1) {
      const name = this.names[index];
      if (!this.rows.has(name) && !this.asked.has(name)) wanted.push(name);
    }
    if (!wanted.length) return;
    for (const name of wanted) this.asked.add(name);
    try {
      const { rows } = await this.api.json("review/api/rows", { names: wanted });
      for (const row of rows) this.put(row);
    } catch (error) {
      for (const name of wanted) this.asked.delete(name);
      this.api.toast(error.message);
    }
  }
}

function signs(row, isUnsaved) {
  const shown = [];
  if (isUnsaved) shown.push(el("span", { class: "badge warn", title: "What you wrote here is not saved" }, "not saved"));
  if (row.score !== null) shown.push(el("span", { class: "number", title: "Score: log-probability a token" }, row.score.toFixed(2)));
  if (row.tokens > 77) shown.push(el("span", { class: "badge warn number", title: "Tokens; CLIP reads 77" }, row.tokens));
  if (row.edited) shown.push(el("span", { class: "dot", title: "Edited" }, el("span", { class: "visually-hidden" }, "edited")));
  return shown;
}
