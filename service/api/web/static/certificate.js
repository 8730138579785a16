// The page of one certificate: how far it is, its images to label, and what it says.

import {
  $, call, captioned, claim, count, door, el, letGo, may, nameOf, none, percent, picture, pressed, saves, say, show, sure, underMouse,
} from "/pages/api.js";

const SIZE = 25;
const ACROSS = 5;
const HOLD_MS = 450;
const POLL_MS = 1000;

const here = `/v1/certificates/${encodeURIComponent(location.pathname.split("/").pop())}`;
const grid = $(".grid");

let session;
let certificate;
let page = null; // {images: [{id, b64_json}], marks: [label], steps: [[index, before]], shown}
let ahead = null; // a promise of the page after it
let busy = false;
let at = 0;

/* What it says */

function tell(now) {
  certificate = now;
  const { terms, progress, result, status } = now;
  $("#which").textContent = `Certificate of policy ${now.policy}, version ${now.policy_version} · attempt ${terms.attempt}`;
  $("#statement").textContent =
    status === "passed" ? `${now.statement}.` : `Does ${now.policy} deliver at most ${percent(terms.epsilon)} malign images?`;
  $("#status").textContent = status;
  $("#status").className = `pill ${status}`;
  $("#came").textContent = result?.reason
    ? `${result.reason}.`
    : result
      ? `${result.k} of ${result.n} were malign or unsure: the rate is at most ${percent(result.bound)}.`
      : `${terms.n} images${now.inputs ? ` ${now.inputs}` : ""}, of which ${terms.allowed} may be malign or unsure, prove it with confidence ${percent(1 - terms.delta)} over all attempts. This was fixed before the first label.`;
  $("#drawing").hidden = status !== "drawing";
  $("#drawing progress").value = progress.drawn / terms.n;
  $("#drawing p").textContent = `${progress.drawn} of ${terms.n} drawn, ${progress.blocked} blocked by the policy${now.stage === "runs" ? "" : `; ${now.stage}`}`;
  $("#ending").hidden = !["drawing", "labelling"].includes(status) || !may(session, "approve");
  $("#label").hidden = status !== "labelling" || !may(session, "label");
  $("#question").textContent = now.question;
  $("#share").style.width = `${(100 * progress.labelled) / terms.n}%`;
  $("#left").textContent = `${progress.labelled} of ${terms.n} labelled`;
  $("#covers").replaceChildren(...grouped(now.covered));
  $("#not").replaceChildren(...now.not_covered.map((sentence) => el("li", {}, sentence)));
  $("#prints").replaceChildren(...lines("fingerprint", now.fingerprint ?? null), ...lines("public_key", now.public_key ?? $("#prints").dataset.key ?? null));
  if (now.public_key) $("#prints").dataset.key = now.public_key;
  $("#evidence").hidden = !["passed", "failed"].includes(status) || !may(session, "approve");
  $("#evidence a").href = `${here}/evidence`;
}

const GROUPS = {
  "What is asked": ["question", "inputs"],
  "What decides": ["threshold", "probe_thresholds", "max_draws"],
  Sampling: ["model", "bundle", "sampling"],
  "Where it runs": ["runtime", "device", "judge_device", "packages"],
};

/** All that is covered, under headings. */
function grouped(covered) {
  const named = Object.values(GROUPS).flat();
  const groups = { ...GROUPS, Besides: Object.keys(covered).filter((name) => !named.includes(name)) };
  return Object.entries(groups).flatMap(([heading, names]) => {
    const found = names.flatMap((name) => lines(name, covered[name] ?? null));
    return found.length ? [el("h3", {}, heading), el("dl", { class: "particulars" }, ...found)] : [];
  });
}

/** A fraction with the four digits that people read; the evidence keeps them all. */
const short = (value) => (typeof value === "number" && !Number.isInteger(value) ? Number(value.toPrecision(4)) : value);

/** A thing that is covered, as terms and descriptions; what is absent is left out. */
function lines(name, value) {
  if (value === null || (Array.isArray(value) && !value.length)) return [];
  if (typeof value === "object" && !Array.isArray(value)) {
    return Object.entries(value).flatMap(([inner, one]) => lines(inner, one));
  }
  const text = [value].flat().map((one) => (typeof one === "object" ? JSON.stringify(one, (_, inner) => short(inner)) : short(one))).join(", ");
  return [el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, text)];
}

async function follow() {
  tell(await call("GET", here));
  if (certificate.status === "drawing") setTimeout(() => follow().catch(failed), POLL_MS);
  else if (certificate.status === "labelling" && may(session, "label") && !page) await turn();
}

/* Pages */

async function fetchPage() {
  const exclude_images = page ? page.images.map((image) => image.id) : [];
  for (;;) {
    const { images: found, unreadable } = await call("POST", `${here}/batches`, { size: SIZE, exclude_images });
    if (unreadable.length) {
      say(`${count(unreadable.length, "image")} can no longer be shown: without a label there is no result. Abandon the attempt, or restore the store's blobs.`, 30);
    }
    const ours = await Promise.all(found.map((image) => claim(image.id)));
    const images = found.filter((_, index) => ours[index]);
    if (images.length || !found.length) return { images, marks: images.map(() => "benign"), steps: [] };
    exclude_images.push(...found.map((image) => image.id)); // another tab shows them
  }
}

async function turn() {
  const coming = ahead ?? fetchPage();
  ahead = null;
  page = await coming;
  if (!page.images.length) page = await fetchPage(); // others may have taken theirs back
  page.shown = performance.now();
  grid.replaceChildren(...page.images.map(cell));
  page.images.forEach((_, index) => marked(index));
  if (!page.images.length) {
    $("#said").textContent = "Nothing is left for you: somebody else has the last images.";
    return;
  }
  ends();
  focus(0);
  ahead = fetchPage();
  ahead.catch(() => { ahead = null; });
}

async function next() {
  if (busy || !page) return;
  if (!page.images.length) return follow().then(turn);
  busy = true;
  try {
    await save();
  } finally {
    busy = false;
  }
}

/** Whether the page in hand holds the last labels, with which everything is fixed. */
function ends() {
  const last = certificate.terms.n - certificate.progress.labelled <= page.images.length;
  $("#next").firstChild.data = last ? "Finish: this fixes the result " : "Next page ";
  return last;
}

async function save() {
  try {
    tell(await call("GET", here)); // others label too
  } catch (fault) {
    return say(`Not saved: ${fault.message}`, 10);
  }
  if (ends()) {
    const not = page.marks.filter((one) => one !== "benign").length;
    const these = `Of ${count(page.images.length, "last image")}, ${not} ${not === 1 ? "is" : "are"} marked malign or unsure.`;
    const fixed = `${these} With these labels the result is computed, and nothing about it changes any more: no label, no undo.`;
    if (!await sure("Finish the certificate?", fixed, "Finish")) return;
  }
  grid.setAttribute("aria-busy", "true");
  const each = Math.min(Math.round((performance.now() - page.shown) / page.images.length), 3_600_000);
  const labels = page.images.map((image, i) => ({ image_id: image.id, label: page.marks[i], elapsed_ms: each }));
  try {
    const now = await call("POST", `${here}/labels`, { labels });
    const ids = page.images.map((image) => image.id);
    saves(here).add(ids);
    ids.forEach(letGo);
    if (now.labelled_by_others.length) say(`${count(now.labelled_by_others.length, "image")} had been labelled by somebody else.`);
    tell(now);
    if (now.status === "labelling") await turn();
    else page = null;
  } catch (fault) {
    if (fault.status === 409) { page = null; await follow().catch(failed); }
    say(`Not saved: ${fault.message}`, 10);
  } finally {
    grid.removeAttribute("aria-busy");
  }
}

async function undo() {
  if (busy) return;
  if (page?.steps.length) {
    const [index, before] = page.steps.pop();
    page.marks[index] = before;
    marked(index);
    focus(index);
    return;
  }
  busy = true;
  try {
    await saves(here).takeBack((ids) => call("POST", `${here}/labels/undo`, ids && { image_ids: ids }));
    ahead = null;
    page = null;
    await follow();
    say("Your last page is open again, among the images that come.");
  } catch (fault) {
    say(fault.status === 409 ? "Nothing of yours is left to undo." : fault.message);
  } finally {
    busy = false;
  }
}

/* The grid */

function cell(image, index) {
  const node = el("button", { type: "button", class: "cell", tabindex: "-1" });
  node.append(picture(`data:image/png;base64,${image.b64_json}`, ""));
  captioned(node, image);
  let hold = null;
  let held = false;
  node.addEventListener("pointerdown", (event) => {
    held = false;
    if (event.pointerType !== "mouse") hold = setTimeout(() => { held = true; mark(index, "unsure"); }, HOLD_MS);
  });
  for (const end of ["pointerup", "pointercancel", "pointerleave"]) node.addEventListener(end, () => clearTimeout(hold));
  node.addEventListener("click", () => { if (!held) mark(index, "malign"); held = false; });
  node.addEventListener("contextmenu", (event) => event.preventDefault());
  node.addEventListener("focus", () => { at = index; $("#caption").textContent = image.caption ?? ""; });
  return node;
}

function mark(index, label) {
  if (busy || !page?.images.length) return;
  page.steps.push([index, page.marks[index]]);
  page.marks[index] = page.marks[index] === label ? "benign" : label;
  marked(index);
  $("#live").textContent = `${page.marks[index]}, image ${index + 1}`;
}

function marked(index) {
  const node = grid.children[index];
  const label = page.marks[index];
  if (label === "benign") delete node.dataset.mark;
  else node.dataset.mark = label;
  node.setAttribute("aria-label", `${nameOf(page.images[index], index, ACROSS)}: ${label}`);
  node.setAttribute("aria-pressed", label === "malign" ? "true" : label === "unsure" ? "mixed" : "false");
  const not = page.marks.filter((one) => one !== "benign").length;
  $("#said").textContent = not ? `${not} not benign` : "all benign";
}

function focus(index) {
  at = index;
  [...grid.children].forEach((node, i) => node.setAttribute("tabindex", i === at ? "0" : "-1"));
  grid.children[index]?.focus({ preventScroll: true });
}

underMouse(grid, focus);

const MOVES = {
  ArrowLeft: -1, h: -1, ArrowRight: 1, l: 1, ArrowUp: -ACROSS, k: -ACROSS, ArrowDown: ACROSS, j: ACROSS,
};

document.addEventListener("keydown", (event) => {
  if ($("#label").hidden || $("#certificate").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const control = event.target.closest?.("button, a, input");
  const inGrid = !control || control.classList.contains("cell");
  const key = pressed(event);
  if (key in MOVES) {
    const to = at + MOVES[key];
    const sameRow = Math.floor(to / ACROSS) === Math.floor(at / ACROSS);
    if (to >= 0 && to < grid.children.length && (Math.abs(MOVES[key]) !== 1 || sameRow)) focus(to);
  } else if (event.repeat) return;
  else if (key === " " && inGrid) mark(at, "malign");
  else if (key === "u") mark(at, "unsure");
  else if (key === "Enter" && inGrid) next();
  else if (key === "z") undo();
  else return;
  event.preventDefault();
});

$("#next").addEventListener("click", next);
$("#undo").addEventListener("click", undo);

$("#ending button").addEventListener("click", async () => {
  const text = "It ends without a result, stays on record, and counts as an attempt: the next one spends half of what this one would have.";
  const reason = await sure("Abandon this attempt?", text, "Abandon", "Why");
  if (!reason) return;
  try {
    tell(await call("POST", `${here}/abandon`, { reason }));
  } catch (fault) {
    say(fault.message, 10);
  }
});

const failed = (fault) => say(fault.message, 30);

async function start() {
  session = await door("label", "approve");
  show("certificate");
  await follow();
}

start().catch((fault) => none(fault, "/certificates", "All certificates"));
