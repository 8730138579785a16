// The labelling page. Its state is the page in hand, those that wait, and what each image is marked.

import {
  $, browser, call, captioned, claim, count, door, el, letGo, letGoOfAll, may, nameOf, picture, pressed, saves, say, show, underMouse,
} from "/pages/api.js";

const SIZE = 25;
const ACROSS = 5;
const MINUTES = 3;
const HOLD_MS = 450;
const RETRY_MS = [0, 400, 1200];

const grid = $(".grid");
const loupe = $(".loupe");
const live = $("#live");

let session;
let dataset;
let kinds = {}; // of each model, what it takes: none, class or text
let page = null; // {id, images: [{id, b64_json}], marks: [label], steps: [[index, before]], ms}
let waiting = []; // pages that were fetched and not yet shown
let fetching = null;
let busy = false;
let at = 0; // the cell that the keys act on
let clock = 0; // milliseconds that somebody looked at images of this dataset, here
let ticked = null;

/* Pages */

async function fetchPage() {
  const asked = dataset.name;
  const exclude_batches = [page, ...waiting].filter(Boolean).map((one) => one.id);
  for (;;) {
    const batch = await call("POST", `/v1/datasets/${asked}/batches`, { size: SIZE, exclude_batches });
    if (await claim(batch.id)) {
      gaps(batch);
      return fresh(batch.id, batch.images);
    }
    exclude_batches.push(batch.id); // another tab shows it
  }
}

/** Say what a page lacks: images that are gone or damaged, inputs that the model does not take. */
function gaps({ unreadable = [], left_out = [] }) {
  const lacks = [
    unreadable.length && `${count(unreadable.length, "image")} can no longer be shown, and ${unreadable.length === 1 ? "was" : "were"} passed over.`,
    ...left_out.map(({ input, why }) => `Input ${input + 1} of this dataset is not drawn: ${why}.`),
  ].filter(Boolean);
  if (lacks.length) say(lacks.join(" "), 12);
}

function fresh(id, images) {
  let [marks, steps] = [images.map((image) => image.label ?? "benign"), []];
  try {
    const draft = JSON.parse(browser.get(`winnow:draft:${id}`));
    // By id, as an image may have gone since.
    const places = images.map((image) => draft.ids.indexOf(image.id));
    marks = places.map((place, i) => draft.marks[place] ?? marks[i]);
    steps = draft.steps.map(([index, before]) => [places.indexOf(index), before]).filter(([index]) => index >= 0);
  } catch { /* a draft is a convenience */ }
  return { id, images, marks, steps, ms: 0 };
}

/** What a reload brings back: the marks, and the steps to them, so that they can be undone. */
function keep() {
  browser.set(`winnow:draft:${page.id}`, JSON.stringify({ ids: page.images.map((image) => image.id), marks: page.marks, steps: page.steps }));
}

/** Fetch the next page in the background, so that nobody waits for it. */
function fetchAhead() {
  if (fetching || waiting.length) return;
  const asked = dataset.name;
  fetching = fetchPage()
    .then((next) => (here(asked) ? waiting.push(next) : letGo(next.id)))
    .catch(() => {}) // asked for again when it is needed
    .finally(() => { fetching = null; });
}

async function turn() {
  const asked = dataset.name;
  page = null;
  placeholders();
  if (fetching) await fetching;
  const next = here(asked) ? waiting.shift() ?? (await fetchPage()) : null;
  // Another dataset may have been opened meanwhile: these images answer an old question.
  if (!here(asked)) {
    if (next) letGo(next.id);
    return dataset && turn();
  }
  page = next;
  draw();
  fetchAhead();
}

/** Whether this dataset is still the one that is open. */
const here = (asked) => dataset?.name === asked;

async function next() {
  if (busy) return;
  if (!page) return begin();
  busy = true;
  grid.setAttribute("aria-busy", "true");
  const done = page;
  const asked = dataset.name;
  const each = Math.min(Math.round(done.ms / done.images.length), 3_600_000);
  const labels = done.images.map((image, i) => ({
    image_id: image.id, label: done.marks[i], elapsed_ms: each,
  }));
  try {
    const now = await persistently("POST", `/v1/datasets/${asked}/labels`, { labels });
    if (here(asked)) counted(now);
    browser.remove(`winnow:draft:${done.id}`);
    saves(asked).add(done.id);
    letGo(done.id);
    announce(`Saved ${count(labels.length, "label")}.`);
  } catch (fault) {
    failed(fault);
    return;
  } finally {
    busy = false;
    grid.removeAttribute("aria-busy");
  }
  if (dataset) await begin();
}

async function undo() {
  if (busy) return;
  if (page?.steps.length) {
    const [index, before] = page.steps.pop();
    page.marks[index] = before;
    keep();
    marked(index);
    focus(index);
    return;
  }
  busy = true;
  const asked = dataset.name;
  try {
    const path = `/v1/datasets/${asked}/labels/undo`;
    const back = await saves(asked).takeBack((batch) => call("POST", path, batch && { batch }));
    if (!here(asked)) return;
    counted(back);
    gaps(back);
    announce("The last page is back. Its labels were taken out.");
    if (!back.images.length) return;
    await claim(back.id);
    if (page) waiting.unshift(page);
    page = fresh(back.id, back.images);
    draw();
  } catch (fault) {
    say(fault.status === 409 ? "Nothing of yours is left to undo." : fault.message);
  } finally {
    busy = false;
    if (dataset && !here(asked)) await begin();
  }
}

/** Try again where the network or the service failed: the last label of an image is the one that counts. */
async function persistently(method, path, body) {
  let last;
  for (const pause of RETRY_MS) {
    await new Promise((resolve) => setTimeout(resolve, pause));
    try {
      return await call(method, path, body);
    } catch (fault) {
      last = fault;
      if (fault.status && fault.status < 500 && fault.status !== 429) throw fault;
    }
  }
  throw last;
}

function failed(fault) {
  if (fault.status === 401 || ["policy_not_allowed", "origin_refused"].includes(fault.code)) {
    say("Your session has ended. Your marks are kept: enter again.");
    return start();
  }
  say(`Not saved: ${fault.message} Press Enter to try again.`, 12);
}

/* The grid */

function placeholders() {
  grid.replaceChildren(...Array.from({ length: SIZE }, () => el("div", { class: "cell empty" })));
  grid.setAttribute("aria-busy", "true");
  loupe.replaceChildren("");
  $("#caption").textContent = "";
  $("#said").textContent = "Drawing images…";
}

function draw() {
  grid.removeAttribute("aria-busy");
  grid.replaceChildren(...page.images.map(cell));
  page.marks.forEach((_, index) => marked(index, false));
  ticked ??= performance.now();
  focus(0);
  tell();
}

function cell(image, index) {
  const node = el("button", { type: "button", class: "cell", tabindex: "-1", "data-index": index });
  node.append(picture(`data:image/png;base64,${image.b64_json}`, ""));
  captioned(node, image);
  let hold = null;
  let held = false;
  node.addEventListener("pointerdown", (event) => {
    held = false;
    if (event.pointerType === "mouse") return;
    hold = setTimeout(() => { held = true; mark(index, "unsure"); navigator.vibrate?.(15); }, HOLD_MS);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) node.addEventListener(end, () => clearTimeout(hold));
  node.addEventListener("click", (event) => {
    event.preventDefault();
    if (!held) mark(index, "malign");
    held = false;
  });
  node.addEventListener("contextmenu", (event) => {
    event.preventDefault();
    if (event.pointerType === "mouse" || event.button === 2) { if (!held && !hold) mark(index, "unsure"); }
  });
  node.addEventListener("focus", () => { at = index; roving(); look(index); });
  return node;
}

/** Mark an image so, or take the mark away again. */
function mark(index, label) {
  if (busy || !page) return;
  const before = page.marks[index];
  page.steps.push([index, before]);
  page.marks[index] = before === label ? "benign" : label;
  keep();
  marked(index);
}

function marked(index, aloud = true) {
  const node = grid.children[index];
  const label = page.marks[index];
  if (label === "benign") delete node.dataset.mark;
  else node.dataset.mark = label;
  const [row, column] = [Math.floor(index / ACROSS) + 1, (index % ACROSS) + 1];
  node.setAttribute("aria-label", `${nameOf(page.images[index], index, ACROSS)}: ${label}`);
  node.setAttribute("aria-pressed", label === "malign" ? "true" : label === "unsure" ? "mixed" : "false");
  if (aloud) {
    announce(`${label}, row ${row}, column ${column}`);
    tell();
  }
}

function tell() {
  const malign = page.marks.filter((label) => label === "malign").length;
  const unsure = page.marks.filter((label) => label === "unsure").length;
  $("#said").textContent =
    malign || unsure
      ? [malign && `${malign} malign`, unsure && `${unsure} unsure`].filter(Boolean).join(", ")
      : "all benign";
  meter("malign", malign + unsure);
}

function roving() {
  [...grid.children].forEach((node, index) => node.setAttribute("tabindex", index === at ? "0" : "-1"));
}

function focus(index) {
  at = index;
  roving();
  grid.children[index]?.focus({ preventScroll: true });
}

underMouse(grid, focus);

function look(index) {
  const image = page?.images[index];
  if (image) loupe.replaceChildren(picture(`data:image/png;base64,${image.b64_json}`, ""));
  $("#caption").textContent = image?.caption ?? "";
}

const announce = (text) => { live.textContent = text; };

/* Keys */

const MOVES = {
  ArrowLeft: -1, h: -1, ArrowRight: 1, l: 1, ArrowUp: -ACROSS, k: -ACROSS, ArrowDown: ACROSS, j: ACROSS,
};

document.addEventListener("keydown", (event) => {
  if ($("#label").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const target = event.target;
  const control = target.closest?.("button, a, input, select");
  const inGrid = !control || control.classList.contains("cell");
  const key = pressed(event);
  if (key in MOVES) {
    const step = MOVES[key];
    const to = at + step;
    const sameRow = Math.floor(to / ACROSS) === Math.floor(at / ACROSS);
    const ok = to >= 0 && to < (page?.images.length ?? 0) && (Math.abs(step) !== 1 || sameRow);
    focus(ok ? to : at);
  } else if (key === " " && inGrid) {
    if (!event.repeat) mark(at, "malign");
  } else if (key === "u") {
    if (!event.repeat) mark(at, "unsure");
  } else if (key === "Enter" && inGrid) {
    if (!event.repeat) next();
  } else if (key === "z") {
    if (!event.repeat) undo();
  } else if (key === "b") {
    $("#blur").click();
  } else return;
  event.preventDefault();
});

/* Clock and counters */

setInterval(() => {
  const now = performance.now();
  if (ticked !== null && page && !document.hidden && !$("#label").hidden) {
    const passed = Math.min(now - ticked, 1000); // a machine that slept did not label
    clock = clocked() + passed;
    page.ms += passed;
    browser.set(clockName(), String(clock));
  }
  if (ticked !== null) ticked = now;
  showClock();
}, 200);

const clockName = () => `winnow:clock:${dataset.name}:${session.name}`;
const clocked = () => Number(browser.get(clockName())) || 0; // other tabs are on it too

function showClock() {
  const left = MINUTES * 60 - Math.floor(clock / 1000);
  const whole = Math.abs(left);
  const text = `${left < 0 ? "+" : ""}${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
  const node = $("#clock");
  if (node.textContent !== text) node.textContent = text;
  node.classList.toggle("over", left < 0);
  $("#clock-track").style.width = `${Math.min(100, clock / (MINUTES * 600))}%`;
}

function counted(now) {
  dataset = { ...dataset, counts: now.counts, goal: now.goal };
  meter("malign", 0);
  meter("benign", 0);
  const { counts, goal } = dataset;
  $("#reached").hidden = counts.malign + counts.unsure < goal.malign || counts.benign < goal.benign;
}

function meter(kind, unsaved) {
  const node = document.getElementById(kind);
  const { counts } = dataset;
  const total = (kind === "malign" ? counts.malign + counts.unsure : counts[kind]) + unsaved; // nobody is sure that unsure is benign
  $("b", node).textContent = total;
  $(".goal", node).textContent = dataset.goal[kind];
  $("i", node).style.width = `${Math.min(100, (100 * total) / dataset.goal[kind])}%`;
}

/* Datasets */

async function choose() {
  dataset = undefined;
  page = null;
  waiting = [];
  letGoOfAll();
  history.replaceState(null, "", "/feedback");
  const { data, models, kinds: found } = await call("GET", "/v1/datasets");
  kinds = found;
  const ours = data.filter((one) => one.purpose === "labels");
  $(".tiles").hidden = !ours.length;
  $(".tiles").replaceChildren(...ours.map((one) =>
    el("li", {}, el("button", { class: "tile", type: "button", onclick: () => open(one) },
      el("strong", {}, one.question),
      el("span", { class: "soft small number" }, `${one.name} · ${count(total(one), "label")}, ${one.counts.malign} malign`),
    ))));
  const form = $("#choose form");
  form.elements.model.replaceChildren(...models.map((model) => el("option", {}, model)));
  $("#models").hidden = models.length < 2;
  askForPrompts();
  show("choose");
  (ours.length ? $(".tile") : form.elements.question).focus();
}

/** A model that takes a prompt must be told which to draw, by whoever may choose; a disabled field asks nobody. */
function askForPrompts() {
  const { model, prompts } = $("#choose form").elements;
  const text = kinds[model.value] === "text";
  const refused = text && !may(session, "approve");
  $("#prompts").hidden = !text || refused;
  prompts.disabled = !text || refused;
  $("#reviewers").hidden = !refused;
  $("#choose form button").disabled = refused;
}

$("#choose form").elements.model.addEventListener("change", askForPrompts);

const total = (one) => one.counts.benign + one.counts.malign + one.counts.unsure;

$("#choose form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const { name, model, question, prompts } = event.target.elements;
  const wrong = $(".wrong", event.target);
  wrong.textContent = "";
  const inputs = prompts.disabled ? [] : prompts.value.split("\n").map((line) => line.trim()).filter(Boolean).map((prompt) => ({ prompt }));
  try {
    open(await call("POST", "/v1/datasets", { name: name.value, model: model.value, question: question.value, inputs }));
    event.target.reset();
  } catch (fault) {
    wrong.textContent = fault.message;
  }
});

function open(one) {
  dataset = one;
  history.replaceState(null, "", `/feedback?dataset=${encodeURIComponent(one.name)}`);
  $("#question").textContent = one.question;
  $("#train").href = `/feedback/rewards?dataset=${encodeURIComponent(one.name)}`;
  clock = clocked();
  ticked = null;
  counted(one);
  showClock();
  placeholders();
  show("label");
  return begin();
}

async function begin() {
  if (busy) return;
  busy = true;
  try {
    await turn();
  } catch (fault) {
    page = null;
    grid.removeAttribute("aria-busy");
    $("#said").textContent = "No images yet: Enter tries again.";
    if (fault.status === 401) return failed(fault);
    say(fault.message, 8);
  } finally {
    busy = false;
  }
}

$("#next").addEventListener("click", next);
$("#undo").addEventListener("click", undo);
$("#other").addEventListener("click", () => choose().catch((fault) => say(fault.message)));
$("#blur").checked = browser.get("winnow:blur") === "yes";
const blur = () => {
  grid.classList.toggle("blurred", $("#blur").checked);
  browser.set("winnow:blur", $("#blur").checked ? "yes" : "no");
};
$("#blur").addEventListener("change", blur);
blur();

async function start() {
  session = await door();
  const wanted = new URLSearchParams(location.search).get("dataset");
  if (!wanted) return choose();
  try {
    const one = await call("GET", `/v1/datasets/${encodeURIComponent(wanted)}`);
    if (one.purpose !== "labels") throw new Error(`${wanted} is a certificate's: label it on its own page.`);
    await open(one);
  } catch (fault) {
    say(fault.message);
    await choose();
  }
}

start().catch((fault) => say(fault.message, 30));
