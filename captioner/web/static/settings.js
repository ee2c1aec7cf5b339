// What a model is asked: a table of settings in the words of the command line, the drawer that shows them, where they
// are kept (the address, and this browser's memory), and the command line that does the same.

import { button, closesBeside, el, shortName } from "./dom.js";

const STORED = "captioner.settings";
const SHOWN = 60; // characters of a value, where settings stand in one line

/**
 * `needs`: a field of a request that the model must have a use for. `search`: plays a part in "beams" or "sampling".
 * `own`: where the model's own value is found in its description, to be shown where nothing is set. `each`: the flag
 * stands before every word.
 */
const SETTINGS = [
  { name: "prompt", group: "Ask", label: "Goes on from", hint: "a painting of", needs: "prompt", kind: "text", help: "The text goes on from this and does not repeat it." },
  { name: "question", group: "Ask", label: "Question", hint: "what does the image describe?", needs: "question", kind: "text" },
  { name: "instruction", group: "Ask", label: "Instruction", needs: "instruction", kind: "area", help: "In your own words; or choose a style." },
  { name: "style", group: "Ask", label: "Style", needs: "style", kind: "choice", from: "styles", help: "Tags for SD 1.5, a sentence for SDXL, a paragraph for Flux." },
  { name: "mode", group: "Ask", label: "Mode", needs: "mode", kind: "choice", from: "modes" },
  { name: "threshold", group: "Ask", label: "Threshold", needs: "threshold", kind: "number", hint: "0.35", help: "The least probability of a tag that is written." },
  { name: "character_threshold", group: "Ask", label: "Threshold of characters", needs: "character_threshold", kind: "number", hint: "0.85" },
  { name: "rating", group: "Ask", label: "Rating", needs: "rating", kind: "choice", options: ["first", "last"], words: { "": "None", first: "First", last: "Last" } },

  { name: "quality", group: "Search", label: "Quality", needs: "quality", kind: "choice", options: ["best", "fast"], words: { best: "Best", fast: "Fast" }, help: "Fast writes fewer texts and takes half the time." },
  { name: "num_candidates", group: "Search", label: "Candidates", own: "num_return_sequences", kind: "whole", help: "Texts made per picture, of which the best is chosen." },
  { name: "consensus", group: "Search", label: "Choose by consensus", kind: "yesno", own: "consensus", top: true, help: "The candidate nearest in meaning to all of them." },
  { name: "do_sample", group: "Search", label: "How", kind: "yesno", own: "do_sample", yes: "Sample", no: "Search", help: "Draw at random, or look for the likeliest." },
  { name: "num_beams", group: "Search", label: "Beams", search: "beams", own: "num_beams", kind: "whole" },
  { name: "length_penalty", group: "Search", label: "Length penalty", search: "beams", own: "length_penalty", kind: "number", help: "Above 0 favours long texts." },
  { name: "temperature", group: "Search", label: "Temperature", search: "sampling", own: "temperature", kind: "number", help: "Below 1 is tamer, above 1 wilder." },
  { name: "top_k", group: "Search", label: "Top k", search: "sampling", own: "top_k", kind: "whole", help: "0 is all tokens." },
  { name: "top_p", group: "Search", label: "Top p", search: "sampling", own: "top_p", kind: "number" },
  { name: "seed", group: "Search", label: "Seed", search: "sampling", own: "seed", kind: "whole", help: "The same seed gives the same texts." },

  { name: "max_new_tokens", group: "Length", label: "Longest, in tokens", own: "max_new_tokens", kind: "whole" },
  { name: "min_new_tokens", group: "Length", label: "Shortest, in tokens", own: "min_new_tokens", kind: "whole" },
  { name: "max_clip_tokens", flag: "max-tokens-clip", group: "Length", label: "Fit into CLIP tokens", kind: "whole", hint: "77", help: "Cut at a comma so that CLIP's text tower would not truncate it." },
  { name: "repetition_penalty", group: "Length", label: "Repetition penalty", own: "repetition_penalty", kind: "number" },
  { name: "no_repeat_ngram_size", group: "Length", label: "No repeated n-gram of", own: "no_repeat_ngram_size", kind: "whole" },

  { name: "prefix", group: "Words", label: "Prefix", hint: "sks style", kind: "text", help: "A trigger word before the text." },
  { name: "suffix", group: "Words", label: "Suffix", kind: "text" },
  { name: "require", group: "Words", label: "Every text contains", kind: "words", hint: "oil painting, impasto" },
  { name: "forbid", group: "Words", label: "Never written", kind: "words", hint: "watermark, text" },
  { name: "replace", group: "Words", label: "Tags replaced", kind: "words", each: true, hint: "1girl=woman, solo=", help: "One comma term for another; nothing after = drops it." },
  { name: "escape", group: "Words", label: "Escape brackets", kind: "flag", help: "To A1111 and ComfyUI bare ones are a weight." },
  { name: "metadata", group: "Words", label: "A prompt the file carries", kind: "choice", options: ["first", "only"], words: { "": "Ignore it", first: "Take it first", only: "Take only that" } },
  { name: "plain", group: "Words", label: "Of that the words alone", kind: "flag", help: "No weights, no <lora:…>, no BREAK: a caption to train on." },
  { name: "raw", group: "Words", label: "Exactly as the model said it", kind: "flag" },
];
const BY_NAME = Object.fromEntries(SETTINGS.map((setting) => [setting.name, setting]));
const GROUPS = { Ask: "What it is asked", Search: "How it searches", Length: "Length", Words: "Words and finish" };

// --- values --------------------------------------------------------------------------------------------------------

/** From a text (a field, the address): the value, or undefined where it is none. ranges: name → [least, most]. */
function parsed(setting, text, ranges) {
  const said = String(text).trim();
  if (said === "") return undefined;
  if (setting.kind === "whole" || setting.kind === "number") {
    const value = Number(said);
    const [least, most] = ranges[setting.name];
    const fits = value >= least && value <= most;
    return fits && (setting.kind === "number" || Number.isSafeInteger(value)) ? value : undefined;
  }
  if (setting.kind === "yesno") return said === "true" ? true : said === "false" ? false : undefined;
  if (setting.kind === "flag") return said === "true" ? true : undefined;
  if (setting.kind === "words") {
    const words = said.split(",").map((word) => word.trim()).filter(Boolean);
    return words.length > 0 ? words : undefined;
  }
  return ["text", "area"].includes(setting.kind) ? String(text) : said; // a prefix may end with a space
}

const written = (value) => (Array.isArray(value) ? value.join(", ") : String(value));

/** Whether sampling or beams: as it is set, as what is set implies, or as the model does. */
export function samples(values, model) {
  if (values.do_sample !== undefined) return values.do_sample;
  if (values.num_beams !== undefined) return false;
  return model?.decoding?.do_sample ?? false;
}

/** The settings that mean something to this model and this way of searching: what is sent. */
export function inUse(values, model) {
  const way = samples(values, model) ? "sampling" : "beams";
  const used = {};
  for (const [name, value] of Object.entries(values)) {
    const setting = BY_NAME[name];
    if (setting && isUsed(setting, way, model)) used[name] = value;
  }
  if (used.instruction !== undefined) delete used.style; // a style is a ready-made instruction
  if (used.metadata === undefined) delete used.plain; // it is of a prompt that the file carries
  return used;
}

function isUsed(setting, way, model) {
  if (setting.needs && !(model?.uses ?? []).includes(setting.needs)) return false;
  if (!model?.decoding && setting.group !== "Words" && setting.group !== "Ask" && setting.name !== "max_clip_tokens") return false;
  return !setting.search || setting.search === way;
}

// --- what a model can be asked -------------------------------------------------------------------------------------

const descriptions = new Map();

/** A model's description, for which the server is asked once. */
export function describe(api, name) {
  if (!descriptions.has(name)) {
    const asked = api.json(`page/model?name=${encodeURIComponent(name)}`);
    descriptions.set(name, asked);
    asked.catch(() => descriptions.delete(name));
  }
  return descriptions.get(name);
}

/** What the other views ask of a model: the settings that Caption has by now, where they mean something to it. */
export async function settingsFor(api, model) {
  const { values } = load("", api.settings);
  return Object.keys(values).length ? inUse(values, await describe(api, model)) : {};
}

/** Settings in words: Style: tags · Prefix: “sks style”. */
export function inWords(values) {
  return Object.entries(values).map(([name, value]) => told(BY_NAME[name], value)).join(" · ");
}

function told(setting, value) {
  if (setting.kind === "flag") return setting.label;
  if (setting.kind === "yesno") return `${setting.label}: ${(value ? setting.yes ?? "Yes" : setting.no ?? "No").toLowerCase()}`;
  const words = setting.words?.[value] ?? written(value);
  const few = words.length > SHOWN ? `${words.slice(0, SHOWN)}…` : words;
  return `${setting.label}: ${["text", "area", "words"].includes(setting.kind) ? `“${few}”` : few}`;
}

// --- kept ----------------------------------------------------------------------------------------------------------

/** The address goes before what this browser remembers; names and values that are not ours are left out. */
export function load(hash, { models, ranges }) {
  const address = new URLSearchParams(hash.split("?")[1] ?? "");
  let stored = {};
  try {
    stored = JSON.parse(localStorage.getItem(STORED) ?? "{}") ?? {};
  } catch {
    // Damaged, or switched off: the models' own ways.
  }
  const given = address.size > 0 ? Object.fromEntries(address) : stored;
  const values = {};
  for (const setting of SETTINGS) {
    const value = given[setting.name] === undefined ? undefined : parsed(setting, given[setting.name], ranges);
    if (value !== undefined) values[setting.name] = value;
  }
  return { model: models.includes(given.model) ? given.model : models[0], values };
}

export function store(model, values, models) {
  const kept = Object.fromEntries(Object.entries(values).map(([name, value]) => [name, written(value)]));
  if (model !== models[0]) kept.model = model;
  const query = new URLSearchParams(kept).toString();
  history.replaceState(null, "", `${location.pathname}#caption${query ? `?${query}` : ""}`);
  try {
    localStorage.setItem(STORED, JSON.stringify(kept));
  } catch {
    // Storage may be switched off: the address holds them.
  }
}

// --- the command line ----------------------------------------------------------------------------------------------

const quoted = (word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`);

/** What does the same in a terminal. files: names of pictures; many become the folder that they lie in. */
export function commandLine(model, defaultModel, values, files) {
  const words = ["captioner", "generate", ...(files.length === 0 ? ["picture.png"] : files.length > 4 ? ["photos"] : files)];
  if (model !== defaultModel || defaultModel !== "mini") words.push("--model", model);
  for (const [name, value] of Object.entries(values)) {
    const flag = `--${(BY_NAME[name].flag ?? name).replaceAll("_", "-")}`;
    if (value === true) words.push(flag);
    else if (value === false) words.push(flag.replace("--", "--no-"));
    else
      for (const said of BY_NAME[name].each ? value : [Array.isArray(value) ? value.join(",") : written(value)])
        words.push(...(said.startsWith("-") ? [`${flag}=${said}`] : [flag, said]));
  }
  return words.map((word) => (word.startsWith("-") && !word.includes("=") ? word : quoted(word))).join(" ");
}

// --- the drawer ----------------------------------------------------------------------------------------------------

/**
 * A dialog at the side. It reads and changes `state` ({model, values, description}) and calls `changed()` after each
 * change, which promises a description; `again()` asks about all pictures anew.
 */
export function drawer(api, state, { changed, again }) {
  const fields = el("div", { class: "fields" });
  const wait = el("p", { class: "note", role: "status" });
  const models = el(
    "select",
    { id: "set-model", onchange: () => choose(models.value) },
    api.settings.models.map((name) => el("option", { value: name }, shortName(name))),
  );
  const close = button("Close", { picture: "close", hideLabel: true, onclick: () => dialog.close() });
  const reset = button("Reset", { picture: "retry", quiet: true, title: "Leave everything to the model", onclick: clear });
  const apply = el("button", { type: "button", class: "primary", onclick: () => (dialog.close(), again()) }, "Caption again");
  const dialog = el(
    "dialog",
    { class: "drawer", "aria-labelledby": "drawer-title" },
    el("header", {}, el("h2", { id: "drawer-title" }, "Settings"), close),
    el("div", { class: "inside" }, el("div", { class: "field" }, el("label", { for: "set-model" }, "Model"), models), wait, fields),
    el("footer", {}, reset, el("span", { class: "grow" }), apply),
  );
  closesBeside(dialog);
  document.body.append(dialog);

  async function choose(name) {
    Object.assign(state, { model: name, description: null });
    const told = changed();
    draw();
    await told;
    draw();
  }

  function clear() {
    state.values = {};
    changed();
    draw();
    reset.focus();
  }

  function set(setting, text) {
    const value = parsed(setting, text, api.settings.ranges);
    if (value === undefined) delete state.values[setting.name];
    else state.values[setting.name] = value;
    changed();
    if (["do_sample", "num_beams"].includes(setting.name)) showUsed();
  }

  function showUsed() {
    const way = samples(state.values, state.description) ? "sampling" : "beams";
    for (const setting of SETTINGS) {
      const row = fields.querySelector(`[data-setting="${setting.name}"]`);
      if (row) row.hidden = !isUsed(setting, way, state.description);
    }
    for (const group of fields.querySelectorAll("fieldset"))
      group.hidden = [...group.querySelectorAll("[data-setting]")].every((row) => row.hidden);
  }

  function draw() {
    models.value = state.model;
    apply.hidden = !state.hasPictures();
    wait.textContent = state.description ? "" : `Loading ${shortName(state.model)} …`;
    fields.replaceChildren(
      ...Object.entries(GROUPS).map(([group, title]) =>
        el("fieldset", {}, el("legend", {}, title), el("div", {}, SETTINGS.filter((one) => one.group === group).map((one) => field(one, state, api, set)))),
      ),
    );
    showUsed();
  }

  return {
    open() {
      draw();
      dialog.showModal();
      if (!state.description) changed().then(() => dialog.open && draw());
    },
  };
}

function field(setting, state, api, set) {
  const id = `set-${setting.name}`;
  const value = state.values[setting.name];
  const own = setting.own === undefined ? undefined : setting.top ? state.description?.[setting.own] : state.description?.decoding?.[setting.own];
  const help = setting.help ? el("p", { class: "help", id: `${id}-help` }, setting.help) : null;
  const shared = { id, "aria-describedby": help ? `${id}-help` : null };
  const text = value === undefined ? "" : written(value);
  let control;
  if (setting.kind === "flag") {
    control = el("input", { ...shared, type: "checkbox", onchange: () => set(setting, String(control.checked)) });
    control.checked = value === true;
    return el("div", { class: "field check", "data-setting": setting.name }, control, el("label", { for: id }, setting.label));
  }
  if (setting.kind === "yesno" || setting.kind === "choice") {
    const yesno = { true: setting.yes ?? "Yes", false: setting.no ?? "No" };
    const unset = own === undefined ? "Default" : `Default (${yesno[own].toLowerCase()})`;
    const words = setting.kind === "yesno" ? { "": unset, ...yesno } : { "": unset, ...setting.words };
    const options = setting.kind === "yesno" ? ["true", "false"] : setting.options ?? api.settings[setting.from];
    control = el("select", { ...shared, onchange: () => set(setting, control.value) }, ["", ...options].map((one) => el("option", { value: one }, words[one] ?? one)));
    control.value = text;
  } else if (setting.kind === "area") {
    control = el("textarea", { ...shared, rows: 3, maxlength: 4000, oninput: () => set(setting, control.value) });
    control.value = text;
  } else {
    const numeric = setting.kind === "whole" || setting.kind === "number";
    const [min, max] = api.settings.ranges[setting.name] ?? [];
    const limits = numeric ? { type: "number", min, max, step: setting.kind === "whole" ? 1 : "any", inputmode: "decimal" } : { type: "text", maxlength: 4000, autocapitalize: "off" };
    control = el("input", { ...shared, ...limits, placeholder: own ?? setting.hint ?? "", autocomplete: "off", oninput: () => set(setting, control.value) });
    control.value = text;
  }
  return el("div", { class: "field", "data-setting": setting.name }, el("label", { for: id }, setting.label), control, help);
}
