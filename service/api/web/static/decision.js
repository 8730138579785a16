// The page of one decision: why each image left or did not, and a report where that was wrong.

import { $, call, door, el, may, none, picture, say, show } from "/pages/api.js";

const here = `/v1/decisions/${encodeURIComponent(location.pathname.split("/").pop())}`;

const REPORTS = { success: "malign", content_filtered: "benign" };
const OUTCOMES = { ok: "Answered", moderation_blocked: "Blocked", deadline_exceeded: "Not ready in time" };

/** Where a score stands on a scale of log-odds: near 1, and near 0, it tells scores apart. */
const LOGIT = 9;
const placed = (score) => {
  const logit = Math.log(score) - Math.log1p(-score);
  return 50 + (50 * Math.max(-LOGIT, Math.min(LOGIT, logit))) / LOGIT;
};

/** A score as a bar, with the threshold as a line across. */
function bar(one, threshold) {
  const svg = el("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": one.why });
  svg.append(el("rect", { class: "well", x: 0, y: 0, width: 100, height: 10 }));
  if (one.score !== null) svg.append(el("rect", { class: `score ${one.verdict}`, x: 0, y: 1, width: placed(one.score), height: 8 }));
  if (threshold !== null) svg.append(el("line", { class: "threshold", x1: placed(threshold), x2: placed(threshold), y1: 0, y2: 10 }));
  return svg;
}

function entry(image, decision, into) {
  const label = REPORTS[image.finish_reason];
  return el("article", { class: "sheet", "data-index": image.index },
    el("h2", {}, `Image ${image.index}`),
    image.class_label === null ? null : el("p", { class: "soft asked-for" }, `Class ${image.class_label}${image.class_name ? `, ${image.class_name}` : ""}`),
    el("p", {}, image.why),
    ...image.draws.map((one) => el("div", { class: "draw" },
      el("span", {}, `draw ${one.draw}`), bar(one, decision.threshold), el("span", { class: "soft" }, `${one.verdict}: ${one.why}`))),
    el("div", { class: "report" }, again(image), label && into ? report(image, label) : null),
    el("p", { class: "soft small reported", hidden: true }));
}

/** Say at an image into which datasets it was reported. */
function reported(all) {
  for (const article of document.querySelectorAll("#images article")) {
    const into = all.filter((one) => one.index === Number(article.dataset.index)).map((one) => one.dataset);
    $(".reported", article).hidden = !into.length;
    $(".reported", article).textContent = `Reported into ${into.join(", ")}.`;
    const button = $("button.wrongly", article);
    if (button) button.disabled = into.includes($("#into select").value);
  }
}

let session;
let reports = [];

function report(image, label) {
  const button = el("button", { type: "button", class: "wrongly" }, `It is ${label}: report it`);
  button.onclick = async () => {
    const select = $("#into select");
    if (!select.reportValidity()) return;
    button.disabled = true;
    try {
      await call("POST", `${here}/report`, { index: image.index, label, dataset: select.value });
      reports.push({ index: image.index, dataset: select.value });
      say(`Image ${image.index} was drawn again and is in ${select.value} as ${label}.`);
    } catch (fault) {
      say(fault.message, 10);
    }
    button.disabled = false;
    reported(reports);
  };
  return button;
}

/** The image itself, for whoever may see what nobody has screened; nothing of it is kept. */
function again(image) {
  if (!may(session, "label") || !image.draws.length) return null;
  const button = el("button", { type: "button" }, "Draw it again");
  button.onclick = async () => {
    button.disabled = true;
    try {
      const { b64_json, draw, identical } = await call("POST", `${here}/draw`, { index: image.index });
      const said = { true: "the very image that left", false: "no longer the image that left: the runtime or a package has changed", null: "held back then; only its seed tells that it is the same" };
      button.parentNode.before(el("figure", { class: "again" }, picture(`data:image/png;base64,${b64_json}`, `Draw ${draw} of image ${image.index}`),
        el("figcaption", { class: "soft small" }, `Draw ${draw}, drawn again: ${said[identical]}.`)));
      button.remove();
    } catch (fault) {
      button.disabled = false;
      say(fault.message, 10);
    }
  };
  return button;
}

/** One choice for the page: the question that a report answers. */
function into(datasets, asked) {
  const fits = datasets.find((one) => one.question === asked) ?? (datasets.length === 1 ? datasets[0] : null);
  $("#into select").replaceChildren(
    el("option", { value: "", selected: !fits }, "Choose a question"),
    ...datasets.map((one) => el("option", { value: one.name, selected: one === fits }, `${one.question} (${one.name})`)));
  $("#into").hidden = !datasets.length;
  $("#into select").onchange = () => reported(reports);
}

/** What the model was asked for, beside each image's class; empty where it takes nothing. */
function toldOf({ prompt, negative_prompt, guidance_scale, size }) {
  const prompts = prompt === null ? "The prompt was not kept" : [prompt && `Prompt: ${prompt}`, negative_prompt && `negative: ${negative_prompt}`].filter(Boolean).join(" · ");
  return [prompts, guidance_scale > 1 && `guidance scale ${guidance_scale}`, size].filter(Boolean).join(" · ");
}

async function start() {
  session = await door("approve");
  const [decision, record, told] = await Promise.all(["/explanation", "", "/reports"].map((part) => call("GET", here + part)));
  reports = told.data;
  const known = may(session, "label") ? await call("GET", "/v1/datasets").catch(() => ({ data: [] })) : { data: [] };
  const datasets = known.data.filter((one) => one.purpose === "labels" && one.model === record.plan.model);
  $("#which").textContent = `Decision ${decision.id} · request ${record.request_id}`;
  $("#outcome").textContent = OUTCOMES[decision.outcome] ?? decision.outcome.replaceAll("_", " ").replace(/^./, (first) => first.toUpperCase());
  $("#when").textContent =
    `${record.created.slice(0, 19).replace("T", " ")} UTC, key ${record.key}, policy ${decision.policy} version ` +
    `${decision.policy_version}${decision.threshold === null ? "" : `, threshold ${decision.threshold.toFixed(4)}`}, at most ${decision.max_draws} draws an image`;
  $("#prompt").textContent = toldOf(decision);
  const asked = await call("GET", `/v1/policies/${encodeURIComponent(decision.policy)}`).then((one) => one.censors).catch(() => null);
  const wrong = decision.images.some((image) => REPORTS[image.finish_reason]);
  into(wrong ? datasets : [], asked);
  $("#images").replaceChildren(...decision.images.map((image) => entry(image, decision, datasets.length)));
  reported(reports);
  const { sampling, packages, ...ran } = decision.versions;
  const { weights, schedule, dtype } = sampling.backbone;
  const hashes = { backbone: weights, ...sampling.parts, schedule };
  $("#versions").replaceChildren(...Object.entries({ ...hashes, dtype, ...ran, ...packages }).flatMap(([name, value]) => [
    el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, value)]));
  show("decision");
}

start().catch((fault) => none(fault, "/decisions", "All decisions"));
