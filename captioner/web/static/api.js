// The way to the server: same origin only, with the key where it wants one, patient where it is busy.

import { button, el, modal } from "./dom.js";

const KEY = "captioner.key";
const TRIES = 6; // of a request that the server is too busy for

/** What the server refuses, in its own words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * `fetch` of the server. A wanted key is asked for and sent again; 429 and 503 are tried again after what
 * `Retry-After` says; anything else that is not a success throws `Refused` with the server's sentence.
 */
export async function request(path, options = {}) {
  for (let tried = 1; ; tried += 1) {
    const response = await send(path, options);
    if (response.ok) return response;
    if (response.status === 401 && (await askForKey())) continue;
    if ((response.status === 429 || response.status === 503) && tried < TRIES) {
      await pause(secondsToWait(response, tried) * 1000, options.signal);
      continue;
    }
    throw new Refused(response.status, await sentenceOf(response));
  }
}

/** What is said as JSON, and the answer as JSON. Without a body it is a GET. */
export async function json(path, body, options = {}) {
  const posted = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  return (await request(path, { ...options, ...posted, headers: { ...headers, ...options.headers } })).json();
}

/**
 * What the server says of one picture. It is sent as a list of one, so that what is wrong with it comes as an answer
 * and not as the failure of a request, which browsers would write into their console.
 */
export async function answer(path, blob, name, settings, signal) {
  const { results } = await asked(path, "images", blob, name, settings, signal);
  if (results[0].error !== undefined) throw new Refused(422, results[0].error);
  return results[0];
}

/** A picture and settings as a form (lists as JSON, the rest as text, nothing of what is undefined), and the answer. */
export async function asked(path, field, blob, name, settings, signal) {
  const body = new FormData();
  body.append(field, blob, name);
  for (const [setting, value] of Object.entries(settings))
    if (value !== undefined) body.append(setting, Array.isArray(value) ? JSON.stringify(value) : String(value));
  return (await request(path, { method: "POST", body, signal })).json();
}

async function send(path, options) {
  const headers = new Headers(options.headers);
  const key = stored();
  if (key) headers.set("Authorization", `Bearer ${key}`);
  const address = new URL(path, location.origin + location.pathname); // without a name and password, which fetch refuses
  try {
    return await fetch(address, { ...options, headers, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer. Is `captioner serve` still running?");
  }
}

function secondsToWait(response, tried) {
  const said = Number.parseFloat(response.headers.get("Retry-After") ?? "");
  const seconds = Number.isFinite(said) && said >= 0 ? said : 0.5 * 2 ** tried;
  return Math.min(seconds, 30) + Math.random() * 0.2; // not all at once again
}

function pause(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, milliseconds);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    });
  });
}

/** The reason as the server words it, in any of the forms that it answers with. */
async function sentenceOf(response) {
  const text = await response.text();
  try {
    const { detail, error, message } = JSON.parse(text);
    if (Array.isArray(detail)) return detail.map((one) => `${(one.loc ?? []).join(".")}: ${one.msg}`).join("; ");
    for (const said of [detail, error?.message, error, message]) if (typeof said === "string") return said;
  } catch {
    // Not JSON: a proxy's page, say.
  }
  return `The server answers ${response.status} ${response.statusText}.`;
}

// --- the key -------------------------------------------------------------------------------------------------------

let memory = "";
let asking = null;

function stored() {
  try {
    return localStorage.getItem(KEY) ?? memory;
  } catch {
    return memory;
  }
}

function store(key) {
  memory = key;
  try {
    localStorage.setItem(KEY, key);
  } catch {
    // Storage may be switched off: the key is asked for once a visit.
  }
}

/** Asked once, however many requests wait for it. False: the user would rather not. */
export function askForKey() {
  asking ??= keyDialog().finally(() => (asking = null));
  return asking;
}

async function keyDialog() {
  const field = el("input", { type: "password", id: "key", autocomplete: "off", required: true });
  const dialog = el(
    "dialog",
    { class: "ask", "aria-labelledby": "key-title" },
    el(
      "form",
      { method: "dialog" },
      el("h2", { id: "key-title" }, "This server wants a key"),
      el("p", {}, "It was given as ", el("code", {}, "--api-key"), " when the server was started. This browser remembers it."),
      el("label", { for: "key" }, "Key"),
      field,
      el(
        "div",
        { class: "row end" },
        button("Cancel", { quiet: true, onclick: () => dialog.close("") }),
        el("button", { class: "primary", value: "given" }, "Use it"),
      ),
    ),
  );
  const isGiven = (await modal(dialog)) === "given" && field.value !== "";
  if (isGiven) store(field.value.trim());
  return isGiven;
}
