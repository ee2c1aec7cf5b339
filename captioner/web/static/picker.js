// Pictures of the server's own folder, to be picked from.

import { button, el, icon, modal } from "./dom.js";

/** A promise of the paths that were picked, or of null. */
export function picker(api) {
  const chosen = new Set();
  const title = el("h2", { id: "picker-title" });
  const up = button("Up", { picture: "up", hideLabel: true });
  const list = el("div", { class: "files", tabindex: "-1" });
  const all = button("All", { quiet: true, class: "all" });
  const take = el("button", { type: "button", class: "primary take", disabled: true }, "Take");
  const dialog = el(
    "dialog",
    { class: "picker", "aria-labelledby": "picker-title" },
    el("header", {}, up, title, el("span", { class: "grow" }), button("Close", { picture: "close", hideLabel: true, onclick: () => dialog.close() })),
    list,
    el("footer", {}, all, el("span", { class: "grow" }), take),
  );
  let here = { path: "", folders: [], pictures: [] };
  const pathOf = (name) => (here.path ? `${here.path}/${name}` : name);

  const count = () => {
    take.textContent = chosen.size === 1 ? "Take 1 picture" : chosen.size > 0 ? `Take ${chosen.size.toLocaleString()} pictures` : "Take";
    take.disabled = chosen.size === 0;
    all.hidden = here.pictures.length === 0;
    all.textContent = here.pictures.every((name) => chosen.has(pathOf(name))) ? "None of this folder" : "All of this folder";
  };

  const entry = (name) => {
    const path = pathOf(name);
    const box = el("input", { type: "checkbox" });
    box.checked = chosen.has(path);
    box.addEventListener("change", () => {
      if (box.checked) chosen.add(path);
      else chosen.delete(path);
      count();
    });
    const image = el("img", { alt: "", loading: "lazy", decoding: "async", src: `page/file?small=true&path=${encodeURIComponent(path)}` });
    image.addEventListener("error", () => image.replaceWith(icon("broken")), { once: true });
    return el("label", { class: "file" }, image, el("span", {}, box, el("span", { class: "name" }, name)));
  };

  const open = async (path) => {
    try {
      here = await api.json(`page/folder?path=${encodeURIComponent(path)}`);
    } catch (error) {
      list.replaceChildren(el("p", { class: "warning" }, error.message));
      return;
    }
    title.textContent = here.path ? here.path.split("/").at(-1) : api.settings.root;
    up.disabled = here.path === "";
    const folders = here.folders.map((name) => el("button", { type: "button", class: "subfolder", onclick: () => open(pathOf(name)) }, icon("folder"), el("span", { class: "name" }, name)));
    const hidden = here.count - here.pictures.length;
    const more = hidden > 0 ? el("p", { class: "note" }, `… and ${hidden.toLocaleString()} more, which are not listed.`) : null;
    const none = folders.length + here.pictures.length === 0 ? el("p", { class: "note" }, "No pictures here.") : null;
    list.replaceChildren(...[...folders, ...here.pictures.map(entry), more, none].filter(Boolean));
    count();
    list.focus({ preventScroll: true });
  };

  up.addEventListener("click", () => open(here.path.split("/").slice(0, -1).join("/")));
  all.addEventListener("click", () => {
    const paths = here.pictures.map(pathOf);
    const on = !paths.every((path) => chosen.has(path));
    for (const path of paths) {
      if (on) chosen.add(path);
      else chosen.delete(path);
    }
    for (const box of list.querySelectorAll("input")) box.checked = on;
    count();
  });
  take.addEventListener("click", () => dialog.close("taken"));
  const closed = modal(dialog);
  open("");
  return closed.then((said) => (said === "taken" ? [...chosen] : null));
}
