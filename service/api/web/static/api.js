// What the pages share: the session, calls to the API, and small helpers for the document.

export class Fault extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.param = error.param;
  }
}

let csrf = null;
let person = null; // who entered, as this page knows

/** Call the API; returns its JSON. Throws a Fault with a sentence to show. */
export async function call(method, path, body) {
  try {
    return await send(method, path, body);
  } catch (fault) {
    if (fault.code !== "origin_refused" || !csrf) throw fault;
    // In another tab somebody has entered anew: the session is the browser's, its token another one.
    const now = await send("GET", "/v1/session");
    if (now.name !== person || now.csrf === csrf) throw fault;
    csrf = now.csrf;
    return send(method, path, body);
  }
}

async function send(method, path, body) {
  const headers = {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (csrf && method !== "GET") headers["X-CSRF-Token"] = csrf;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
    });
  } catch {
    throw new Fault(0, { message: "The service does not answer. Check your connection.", code: "offline" });
  }
  const answer = await response.json().catch(() => null);
  if (response.ok) return answer;
  const error = answer?.error ?? { message: `The service answered ${response.status}.`, code: "unknown" };
  throw new Fault(response.status, error);
}

/** Who is here: {name, scopes}; name is null before somebody entered. */
export async function who(again = true) {
  try {
    const session = await call("GET", "/v1/session");
    csrf = session.csrf;
    person = session.name;
    return session;
  } catch (fault) {
    if (fault.status !== 401) throw fault;
    csrf = null;
    // A session that has ended is forgotten by its refusal: then the question is who one is without.
    return again ? who(false) : { name: null, scopes: [] };
  }
}

export const may = (session, scope) =>
  session.scopes.includes(scope) || session.scopes.includes("admin");

/** Open a session; without a key where anonymous callers may do what is needed. */
export async function enter(name, key) {
  const session = await call("POST", "/v1/session", key ? { name, key } : { name });
  csrf = session.csrf;
  const now = await who();
  if (now.name) return now;
  throw new Fault(0, {
    message: `This browser keeps no cookie of ${location.host}, and without one nobody can tell whose labels these are: allow it, and go on.`,
    code: "no_cookie",
  });
}

export async function leave() {
  await call("DELETE", "/v1/session");
  location.reload();
}

/** What the browser keeps under names. Where it keeps nothing (it is told not to, or is full), this
 * page remembers, until it is left. */
function storage(of) {
  const remembered = new Map();
  const tried = (work) => { try { return work(); } catch { return null; } };
  return {
    get: (name) => remembered.get(name) ?? tried(() => of().getItem(name)),
    set(name, value) {
      remembered.set(name, value);
      if (tried(() => { of().setItem(name, value); return true; })) remembered.delete(name);
    },
    remove(name) {
      remembered.delete(name);
      tried(() => of().removeItem(name));
    },
  };
}

/** For all tabs, and later days. */
export const browser = storage(() => localStorage);

/** For this tab, over a reload. */
export const tab = storage(() => sessionStorage);

const CLAIM_MS = 500;
const claims = new Map(); // what this tab shows, and how to let go of it

/** Make what a name stands for this tab's alone. False where another tab of this browser has it:
 * the same person would label it twice. A tab that is closed, or dies, has let go. */
export function claim(name) {
  // Browsers lend locks to pages that come over https or from this machine; others do without.
  if (!navigator.locks || claims.has(name)) return Promise.resolve(true);
  return new Promise((resolve) => {
    const taken = () => new Promise((release) => { claims.set(name, release); resolve(true); });
    // Not at once: a page that is being loaded again may still hold it.
    navigator.locks.request(`winnow:${name}`, { signal: AbortSignal.timeout(CLAIM_MS) }, taken)
      .catch((fault) => resolve(!["TimeoutError", "AbortError"].includes(fault.name)));
  });
}

export function letGo(name) {
  claims.get(name)?.();
  claims.delete(name);
}

export function letGoOfAll() {
  for (const name of [...claims.keys()]) letGo(name);
}

/** What this tab has saved, the last one last, so that its undo takes back no other tab's. */
export function saves(name) {
  const key = `winnow:saved:${name}`;
  const all = () => JSON.parse(tab.get(key));
  const write = (left) => tab.set(key, JSON.stringify(left));
  return {
    add: (one) => write([...all() ?? [], one]),
    /** Call `undo` with the last one; with nothing, where this tab has saved nothing yet: the
     * person's last is then from another day, or another tab. */
    async takeBack(undo) {
      const left = all();
      if (!left) return undo();
      while (left.length) {
        try {
          const back = await undo(left.pop());
          write(left);
          return back;
        } catch (fault) {
          if (fault.status !== 409) throw fault; // else another tab has taken it back
        }
      }
      throw new Fault(409, { message: "Nothing that was saved here is left to undo." });
    },
  };
}

const NAMELESS = ["Process", "Unidentified", "Dead"]; // what an input method says of any key

/** The key that was pressed: the letter on it, or on a layout of other letters the Latin one that is in its place. */
export function pressed(event) {
  const { key = "", code = "" } = event; // a form that a browser fills in says neither
  if (/^[!-~]+$/.test(key) && !NAMELESS.includes(key)) return key.length === 1 ? key.toLowerCase() : key;
  if (code === "Space") return " ";
  return /^Key[A-Z]$/.test(code) ? code[3].toLowerCase() : key;
}

export const $ = (selector, root = document) => root.querySelector(selector);

/** An element with attributes and children; text stays text. */
export function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "line", "rect", "circle", "text", "polyline", "g", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/* The bar says which page this is, or of which list it shows one. */
const place = (path) => location.pathname === path || (path !== "/feedback" && location.pathname.startsWith(`${path}/`));
for (const link of document.querySelectorAll(".bar nav a")) {
  if (place(link.pathname)) link.setAttribute("aria-current", "page");
}

/** A moment, as people here write it. */
export function when(moment) {
  return new Date(moment).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
}

export const percent = (share) => `${Number((100 * share).toPrecision(share < 0.1 ? 3 : 4))} %`;

/** There is no such thing: say so where it would stand, and lead back to the list. */
export function none(fault, list, words) {
  if (fault.status !== 404) return say(fault.message, 30);
  $("main").replaceChildren(el("div", { class: "narrow" },
    el("h1", {}, "There is none."), el("p", { class: "soft" }, fault.message), el("p", {}, el("a", { class: "button", href: list }, words))));
}

/** Show one of the page's sections. */
export function show(id) {
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== id;
}

let fading;

/** Say something for a moment, to the eye and to a screen reader. */
export function say(text, seconds = 5) {
  const toast = $("#toast");
  toast.textContent = text;
  toast.classList.add("up");
  clearTimeout(fading);
  fading = setTimeout(() => toast.classList.remove("up"), seconds * 1000);
}

export const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

export function duration(seconds) {
  const whole = Math.round(seconds);
  return whole < 60 ? `${whole} s` : `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** An <img> of a PNG; few pixels are shown as pixels, not as fog. */
export function picture(source, alt) {
  const image = el("img", { alt, draggable: "false" });
  image.addEventListener("load", () => image.classList.toggle("small-pixels", image.naturalWidth < 96));
  image.src = source;
  return image;
}

/** Put under an image what the model was asked for; a model that takes nothing has no caption. */
export function captioned(node, image) {
  if (!image.caption) return;
  node.classList.add("captioned");
  node.title = image.caption;
  node.append(el("span", { class: "caption" }, image.caption));
}

/** Where a cell is, for those who hear it. */
export function nameOf(image, index, across) {
  const asked = image.caption ? `, ${image.caption}` : "";
  return `Row ${Math.floor(index / across) + 1}, column ${(index % across) + 1}${asked}`;
}

/** Ask before what cannot be undone. Enter goes on, Escape does not.
 * Resolves with false, or with true, or with what was filled in where `wanted` names a field. */
export function sure(title, text, action, wanted) {
  const field = wanted ? el("input", { maxlength: 500, autofocus: true, onkeydown: (event) => { if (event.key === "Enter") go(); } }) : null;
  const go = () => (field && !field.value.trim() ? field.focus() : dialog.close("yes"));
  const dialog = el("dialog", { class: "sheet", "aria-labelledby": "sure" },
    el("h2", { id: "sure" }, title),
    el("p", { class: "soft" }, text),
    field && el("label", {}, wanted, field),
    el("div", { class: "row" },
      el("button", { type: "button", class: "act", autofocus: !field, onclick: go }, action),
      el("button", { type: "button", onclick: () => dialog.close() }, "Go back")));
  // A key that is held down has asked once, and answers nothing.
  dialog.addEventListener("keydown", (event) => { event.stopPropagation(); if (event.repeat) event.preventDefault(); });
  const before = document.activeElement;
  document.body.append(dialog);
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => {
    dialog.remove();
    before?.focus({ preventScroll: true });
    resolve(dialog.returnValue === "yes" && (field ? field.value.trim() : true));
  }));
}

/** The cursor follows a mouse that moves, so that keys and mouse act on the same image. */
export function underMouse(grid, focus) {
  grid.addEventListener("pointermove", (event) => {
    // A page that came under a mouse at rest has moved nothing.
    if (event.pointerType !== "mouse" || !(event.movementX || event.movementY)) return;
    const cell = event.target.closest("button.cell");
    if (cell && cell !== document.activeElement) focus([...grid.children].indexOf(cell));
  });
}

/** Run the door: ask for a name, and for a key where one is needed. Resolves with the session. */
export async function door(...wanted) {
  const scopes = wanted.length ? wanted : ["label"];
  const fits = (session) => scopes.some((scope) => may(session, scope));
  const session = await who();
  const person = $("#person");
  const opened = (now) => {
    $(".name", person).textContent = now.name;
    person.hidden = false;
    $("button", person).onclick = leave;
    return now;
  };
  if (session.name && fits(session)) return opened(session);
  const keyless = fits(session);
  $("#enter .scopes").textContent = scopes.join(" or ");
  const form = $("#enter form");
  form.elements.key.closest("label").hidden = keyless;
  form.elements.key.required = !keyless;
  form.elements.name.value = browser.get("winnow:name") ?? "";
  show("enter");
  form.elements.name.focus();
  return new Promise((resolve) => {
    form.onsubmit = async (event) => {
      event.preventDefault();
      const wrong = $(".wrong", form);
      wrong.textContent = "";
      try {
        const now = await enter(form.elements.name.value, keyless ? null : form.elements.key.value);
        if (!fits(now)) throw new Fault(403, { message: `This key lacks the ${scopes.join(" or ")} scope.` });
        form.elements.key.value = "";
        browser.set("winnow:name", form.elements.name.value);
        resolve(opened(now));
      } catch (fault) {
        wrong.textContent = fault.message;
      }
    };
  });
}
