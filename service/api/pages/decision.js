// The page of one decision: why each image left or did not, and a report where that was wrong.

import { $, call, door, el, may, say, show } from "/pages/api.js";

const here = `/v1/decisions/${encodeURIComponent(location.pathname.split("/").pop())}`;

const REPORTS = { success: "malign", content_filtered: "benign" };

/** A score in [0, 1] as a bar, with the threshold as a line across. */
function bar(one, threshold) {
  const svg = el("svg", { viewBox: "0 0 100 10", preserveAspectRatio: "none", role: "img", "aria-label": one.why });
  svg.append(el("rect", { class: "well", x: 0, y: 0, width: 100, height: 10 }));
  if (one.score !== null) svg.append(el("rect", { class: `score ${one.verdict}`, x: 0, y: 1, width: 100 * one.score, height: 8 }));
  if (threshold !== null) svg.append(el("line", { class: "threshold", x1: 100 * threshold, x2: 100 * threshold, y1: 0, y2: 10 }));
  return svg;
}

function entry(image, decision, datasets) {
  const label = REPORTS[image.finish_reason];
  return el("article", { class: "sheet" },
    el("h2", {}, `Image ${image.index}`),
    el("p", {}, image.why),
    ...image.draws.map((one) => el("div", { class: "draw" },
      el("span", {}, `draw ${one.draw}`), bar(one, decision.threshold), el("span", { class: "soft" }, `${one.verdict}: ${one.why}`))),
    label && datasets.length ? report(image, label, datasets) : null);
}

function report(image, label, datasets) {
  const select = el("select", {}, ...datasets.map((name) => el("option", {}, name)));
  const button = el("button", { type: "submit" }, `It is ${label}: report it`);
  return el("form", {
    class: "report",
    onsubmit: async (event) => {
      event.preventDefault();
      button.disabled = true;
      try {
        await call("POST", `${here}/report`, { index: image.index, label, dataset: select.value });
        say(`Image ${image.index} was drawn again and is in ${select.value} as ${label}.`);
      } catch (fault) {
        button.disabled = fault.status === 409;
        say(fault.message, 10);
      }
    },
  }, el("label", {}, "Dataset", select), button);
}

async function start() {
  const session = await door("approve");
  const [decision, record] = await Promise.all([call("GET", `${here}/explanation`), call("GET", here)]);
  const known = may(session, "label") ? await call("GET", "/v1/datasets").catch(() => ({ data: [] })) : { data: [] };
  const datasets = known.data.filter((one) => one.purpose === "labels" && one.model === record.plan.model).map((one) => one.name);
  $("#which").textContent = `Decision ${decision.id} · request ${record.request_id}`;
  $("#outcome").textContent = decision.outcome === "ok" ? "Answered" : decision.outcome.replaceAll("_", " ");
  $("#when").textContent =
    `${record.created.slice(0, 19).replace("T", " ")} UTC, key ${record.key}, policy ${decision.policy} version ` +
    `${decision.policy_version}${decision.threshold === null ? "" : `, threshold ${decision.threshold.toFixed(4)}`}, at most ${decision.max_draws} draws an image`;
  $("#images").replaceChildren(...decision.images.map((image) => entry(image, decision, datasets)));
  const { weights, packages, ...ran } = decision.versions;
  $("#versions").replaceChildren(...Object.entries({ ...weights, ...ran, ...packages }).flatMap(([name, value]) => [
    el("dt", {}, name.replaceAll("_", " ")), el("dd", {}, value)]));
  show("decision");
}

start().catch((fault) => say(fault.message, 30));
