// Where the model looked as it wrote each word: the picture, dark where it did not look, word by word.

import { asked } from "./api.js";
import { button, el, saveFile } from "./dom.js";

const SIDE = 480; // pixels of the map as it is drawn over the picture

/** A panel of words; pointing at one, or going to it by keyboard, lights up the picture of the card. */
export function attentionPanel(card, item) {
  if (card.frame.classList.contains("unseen")) return el("p", { class: "note" }, "This browser cannot show the picture, and so not where the model looked.");
  const panel = el("div", { class: "attention" }, el("p", { class: "note", role: "status" }, "Looking …"));
  const { model, prompt, question } = item.settings;
  card.view
    .content(item)
    .then((blob) => asked("v1/attention", "image", blob, item.name, { model, prompt, question, text: item.row.raw }))
    .then(({ words, maps }) => panel.replaceChildren(...drawn(card, item, words, maps)))
    .catch((error) => panel.replaceChildren(el("p", { class: "warning" }, error.message)));
  return panel;
}

function drawn(card, item, words, maps) {
  const { naturalWidth, naturalHeight } = card.image;
  const scale = SIDE / Math.max(naturalWidth, naturalHeight, 1);
  const width = Math.max(1, Math.round(naturalWidth * scale));
  const height = Math.max(1, Math.round(naturalHeight * scale));
  const canvas = el("canvas", { width, height, "aria-hidden": "true" });
  const list = el("div", { class: "words", role: "group", "aria-label": "Words; each shows where the model looked" });
  let kept = null;

  const show = (index) => {
    if (index === null) {
      canvas.remove();
    } else {
      shade(canvas.getContext("2d"), maps[index], width, height);
      if (!canvas.isConnected) card.frame.append(canvas);
    }
    [...list.children].forEach((word, at) => word.setAttribute("aria-pressed", String(at === index)));
  };
  words.forEach((word, index) => {
    const chip = el("button", { type: "button", class: "word", "aria-pressed": "false" }, word);
    chip.addEventListener("pointerenter", () => show(index));
    chip.addEventListener("focus", () => show(index));
    chip.addEventListener("click", () => show((kept = kept === index ? null : index)));
    list.append(chip);
  });
  list.addEventListener("pointerleave", () => show(kept));
  list.addEventListener("focusout", () => show(kept));
  const save = button("Save all as a picture", { picture: "download", quiet: true, onclick: () => sheet(card, item, words, maps) });
  return [el("p", { class: "note" }, "Point at a word: the picture stays light where the model looked."), list, save];
}

/** Black, clear where most was looked at. */
function shade(context, map, width, height) {
  const rows = map.length;
  const columns = map[0].length;
  const values = map.flat();
  const low = Math.min(...values);
  const span = Math.max(...values) - low;
  const small = el("canvas", { width: columns, height: rows });
  const pixels = new ImageData(columns, rows);
  values.forEach((value, at) => (pixels.data[4 * at + 3] = span > 0 ? 205 * (1 - (value - low) / span) : 0));
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.clearRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, width, height);
}

/** The picture, then once a word, five in a row, as `captioner generate --attention` draws it. */
function sheet(card, item, words, maps) {
  const side = 300;
  const scale = side / Math.max(card.image.naturalWidth, card.image.naturalHeight);
  const width = Math.round(card.image.naturalWidth * scale);
  const height = Math.round(card.image.naturalHeight * scale);
  const columns = Math.min(5, words.length + 1);
  const rows = Math.ceil((words.length + 1) / columns);
  const [gap, title] = [12, 30];
  const canvas = el("canvas", { width: columns * (width + gap) + gap, height: rows * (height + title + gap) + gap });
  const context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.font = "17px Georgia, serif";
  context.textAlign = "center";
  const layer = el("canvas", { width, height });
  ["", ...words].forEach((word, index) => {
    const x = gap + (index % columns) * (width + gap);
    const y = gap + Math.floor(index / columns) * (height + title + gap);
    context.drawImage(card.image, x, y + title, width, height);
    if (index > 0) {
      shade(layer.getContext("2d"), maps[index - 1], width, height);
      context.drawImage(layer, x, y + title);
    }
    context.fillStyle = "#1b1d21";
    context.fillText(word, x + width / 2, y + 20, width);
  });
  canvas.toBlob((blob) => saveFile(`${item.name.split("/").at(-1).replace(/\.[^.]*$/, "")}-attention.png`, blob), "image/png");
}
