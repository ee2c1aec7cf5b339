// Making elements. Strings become text nodes, never HTML: what comes from files and servers is shown, not run.

/**
 * `el("button", { class: "plain", onclick: f, "aria-label": "Copy" }, "Copy", icon("copy"))`
 *
 * Keys that begin with "on" are listeners; true and false set and leave out an attribute; null children are left out.
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

const PATHS = {
  auto: "M12 3a9 9 0 1 0 0 18zM12 3a9 9 0 0 1 0 18",
  light: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M4.9 4.9l1.4 1.4M17.7 17.7l1.4 1.4M2 12h2M20 12h2M4.9 19.1l1.4-1.4M17.7 6.3l1.4-1.4",
  dark: "M20 14.5A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.5z",
  copy: "M9 9h10v11H9zM5 15V4h10",
  close: "M6 6l12 12M18 6 6 18",
  settings: "M4 7h9M17 7h3M4 17h3M11 17h9M15 5v4M9 15v4",
  retry: "M20 11a8 8 0 1 0-2.3 6.3M20 5v6h-6",
  download: "M12 4v11M7 10l5 5 5-5M5 20h14",
  stop: "M7 7h10v10H7z",
  folder: "M3 7h6l2 2h10v10H3z",
  picture: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15.5 9h.01",
  swap: "M7 4 3 8l4 4M3 8h14M17 12l4 4-4 4M21 16H7",
  compare: "M12 3v18M4 7h4M4 12h4M4 17h4M16 7h4M16 12h4M16 17h4",
  check: "M5 12.5l4.5 4.5L19 7.5",
  left: "M15 5l-7 7 7 7",
  up: "M12 19V6M6 11l6-6 6 6",
  right: "M9 5l7 7-7 7",
  undo: "M9 7 4 12l5 5M4 12h10a6 6 0 0 1 6 6v1",
  redo: "M15 7l5 5-5 5M20 12H10a6 6 0 0 0-6 6v1",
  search: "M10.5 4a6.5 6.5 0 1 0 0 13 6.5 6.5 0 0 0 0-13M15.5 15.5 20 20",
  list: "M8 6h12M8 12h12M8 18h12M4 6h.01M4 12h.01M4 18h.01",
  pencil: "M4 20l1-4L16 5l3 3L8 19zM14 7l3 3",
  tags: "M4 4h8l8 8-8 8-8-8zM8.5 8.5h.01",
  history: "M4 12a8 8 0 1 0 2.5-5.8M4 4v4h4M12 8v4l3 2",
  help: "M9.2 9a2.8 2.8 0 1 1 4 2.6c-.9.5-1.2 1-1.2 2M12 17h.01M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18",
  broken: "M4 5h16v14H4zM4 15l4-3 3 3M13 13l3-3 4 4M10 5l2 5-2 3 2 6",
};

/** As `el`, of a drawing. */
export function svg(tag, attributes, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A line drawing for a button; the button itself says in words what it does. */
export const icon = (name) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "line-icon" }, svg("path", { d: PATHS[name] }));

/** A button with an icon and words; the words alone where there is room for them are `label`. */
export function button(label, { picture = null, quiet = false, hideLabel = false, ...attributes } = {}) {
  const classes = [attributes.class, quiet && "quiet", hideLabel && "icon"].filter(Boolean).join(" ");
  const words = hideLabel ? null : el("span", {}, label);
  const named = hideLabel ? { "aria-label": label, title: label } : {};
  return el("button", { type: "button", ...named, ...attributes, class: classes || null }, picture && icon(picture), words);
}

/** Show a dialog, which goes when it is closed: a promise of what it was closed with. */
export function modal(dialog) {
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => (dialog.remove(), resolve(dialog.returnValue))));
}

/** A press beside a dialog closes it; a text that is marked from within to beyond its edge does not. */
export function closesBeside(dialog) {
  let pressed = null;
  dialog.addEventListener("pointerdown", (event) => (pressed = event.target));
  dialog.addEventListener("click", (event) => event.target === dialog && pressed === dialog && dialog.close());
}

/** Whether a key belongs to an input method, which chooses among its words by it. Safari tells the last one only by its code. */
export const isComposing = (event) => event.isComposing || event.keyCode === 229;

/** Put the text into the clipboard, also where the page is not served over HTTPS. */
export async function copyText(text) {
  if (navigator.clipboard && window.isSecureContext) {
    await navigator.clipboard.writeText(text);
    return;
  }
  const before = document.activeElement;
  const area = el("textarea", { class: "visually-hidden", "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  before?.focus({ preventScroll: true });
  if (!isCopied) throw new Error("not copied");
}

/** Hand a file to the user. */
export function saveFile(name, content, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  const link = el("a", { href: address, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

/** A model's name as there is room for it: of a folder on the server only its own name. */
export const shortName = (model) => (/^([~./]|[A-Za-z]:)/.test(model) ? model.split(/[\\/]/).filter(Boolean).at(-1) : model);
