// The shell: which view is shown, the theme, and what the views share.
//
// A view is a module beside this one that offers `mount(element, api)`. It is imported when it is first opened, and
// may return `{ shown(state), hidden() }`, which are called whenever it comes and goes. `api` is:
//
//   api.json(path, body)          the server's answer; throws `Refused` with a sentence (api.js)
//   api.request(path, options)    the same as `fetch` gives it: for uploads and downloads
//   api.say(text)                 for screen readers, politely
//   api.toast(text, { undo })     a short message at the foot, with a way back where `undo` is a function
//   api.open(view, state)         another view; `state` is handed to its `shown`. Compare takes {left, right}, each
//                                 {name, text} or {name, rows: [{file, text}, …]}
//   api.isPicture(name)           whether a file is called as pictures are
//   api.acceptedPictures()        what a file chooser lets pictures be called
//   api.settings                  what the server said of itself: {models, root, index, …} (`/page/settings`)
//
// dom.js makes elements and icons: text is always put in as text.

import { json, request } from "./api.js";
import { button, el, icon } from "./dom.js";

const VIEWS = { caption: "Caption", review: "Review", compare: "Compare" };
const opened = {};
let current = null;
let failed = 0; // modules that did not come: Firefox asks for none again by the same address
let handed = {};

const said = document.getElementById("said");
const toasts = document.getElementById("toasts");

function say(text) {
  said.textContent = "";
  requestAnimationFrame(() => (said.textContent = text)); // the same text twice is said twice
}

function toast(text, { undo = null, seconds = undo ? 12 : 5 } = {}) {
  const away = () => (box.matches(":hover, :focus-within") ? setTimeout(away, 1000) : box.remove()); // not while it is used
  const back = undo && button("Undo", { quiet: true, title: "Undo (Ctrl+Z)", "aria-keyshortcuts": "Control+Z", onclick: () => (box.remove(), undo()) });
  const box = el("div", { class: "toast" }, el("span", {}, text), back);
  toasts.replaceChildren(box);
  say(undo ? `${text}. Ctrl+Z takes it back.` : text);
  setTimeout(away, seconds * 1000);
}

// A message is gone before Tab has come to it at the page's end. Review's own undo and that of fields go first.
window.addEventListener("keydown", (event) => {
  const back = toasts.querySelector("button");
  if (!back || event.defaultPrevented || event.key !== "z" || !(event.ctrlKey || event.metaKey) || event.target.matches("input, textarea")) return;
  event.preventDefault();
  back.click();
});

function open(view, state = null) {
  if (state) handed[view] = state;
  if (viewOf(location.hash) === view) show(view);
  else location.hash = view;
}

/** By its name; of a folder, masks and hidden files are none, as on the command line. */
function isPicture(name) {
  const { endings, masks } = api.settings.pictures;
  const isOf = (all) => all.some((ending) => name.toLowerCase().endsWith(ending));
  return !name.startsWith(".") && isOf(endings) && !isOf(masks);
}

/** For a file chooser. */
const acceptedPictures = () => ["image/*", ...api.settings.pictures.endings].join(",");

const api = { json, request, say, toast, open, isPicture, acceptedPictures, settings: null };

// --- views -----------------------------------------------------------------------------------------------------------

function viewOf(hash) {
  const name = hash.replace(/^#/, "").split("?")[0];
  return name in VIEWS ? name : null;
}

async function show(view) {
  if (current && current !== view) (await opened[current])?.hidden?.();
  current = view;
  document.title = `${VIEWS[view]} · captioner`;
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== view;
  for (const tab of document.querySelectorAll("[data-view]")) {
    if (tab.dataset.view === view) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  opened[view] ??= mount(view);
  const methods = await opened[view];
  const state = handed[view] ?? null;
  delete handed[view];
  methods?.shown?.(state);
}

async function mount(view) {
  const section = document.getElementById(view);
  try {
    api.settings ??= await json("page/settings");
    const module = await import(`./${view}.js${failed ? `?${failed}` : ""}`).catch(async (error) => {
      failed += 1;
      await json("page/settings"); // says it in words where the server does not answer
      throw error;
    });
    return (await module.mount(section, api)) ?? {};
  } catch (error) {
    delete opened[view]; // the next time may do better
    const again = button("Try again", { picture: "retry", onclick: () => show(view) });
    section.replaceChildren(el("div", { class: "notice" }, el("p", {}, `${VIEWS[view]} could not be opened: ${error.message}`), again));
    return {};
  }
}

window.addEventListener("hashchange", () => {
  const view = viewOf(location.hash);
  if (view === null) return; // a link within the page
  const moved = view !== current;
  show(view);
  if (moved) {
    window.scrollTo(0, 0);
    say(VIEWS[view]);
  }
});

document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main").focus();
});

// A file that is let go of where no view takes it would be opened in place of the page, with all that is written there.
for (const name of ["dragover", "drop"]) window.addEventListener(name, (event) => event.dataTransfer?.types.includes("Files") && event.preventDefault());

// --- theme -----------------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
const themeButton = document.getElementById("theme");

function drawTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  const words = { auto: "Theme: as the system", light: "Theme: light", dark: "Theme: dark" }[theme];
  themeButton.setAttribute("aria-label", words);
  themeButton.title = words;
  themeButton.replaceChildren(icon(theme));
}

themeButton.addEventListener("click", () => {
  const theme = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % THEMES.length];
  drawTheme(theme);
  say(themeButton.title);
  try {
    localStorage.setItem("captioner.theme", theme);
  } catch {
    // Storage may be switched off: chosen for this visit.
  }
});

drawTheme(document.documentElement.dataset.theme ?? "auto");
show(viewOf(location.hash) ?? "caption");
