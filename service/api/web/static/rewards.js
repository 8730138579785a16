// The rewards page: train, watch, read the card, and put a reward in force.

import { $, call, count, door, duration, el, may, picture, say, show, when } from "/pages/api.js";

const RUNNING = ["queued", "training", "cancelling"];
const WORDS = {
  queued: "waits", training: "learns", cancelling: "stops", ready: "ready", failed: "failed", cancelled: "cancelled",
};

const STAGES = {
  judge: "the judge", clean_guide: "what probes stop hopeless draws by", probe: "what probes stop hopeless draws by",
  guide: "the guide", distilled: "the guide's student",
};

const form = $("#train");
let session;
let datasets = [];
let policies = [];
let timer;
const shown = new Map(); // id -> [what was last drawn, node]

/* Training */

function chosen() {
  return datasets.find((one) => one.name === form.elements.dataset.value);
}

function describe() {
  const one = chosen();
  if (!one) return;
  const { benign, malign, unsure, seconds } = one.counts;
  $("#counts").textContent =
    `${one.question} ${benign} benign, ${malign} malign${unsure ? `, ${unsure} unsure` : ""}, in ${duration(seconds)}.`;
  const fitting = policies.filter((policy) => policy.model === one.model && judged(policy));
  form.elements.policy.replaceChildren(
    ...(fitting.length ? fitting : [{ id: "" }]).map((policy) =>
      el("option", { value: policy.id, selected: policy.default }, policy.id ? named(policy) : "the default")),
  );
}

const named = (policy) => (policy.disabled ? `${policy.id} (switched off)` : policy.id);

/** One that waits for its first reward asks no question yet. */
const judged = (policy) => policy.censors !== null || !policy.ready;

form.elements.dataset.addEventListener("change", () => {
  describe();
  refresh();
});
form.elements.guide.addEventListener("change", () => {
  form.elements.distil.disabled = !form.elements.guide.checked;
  if (!form.elements.guide.checked) form.elements.distil.checked = false;
});

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const { dataset, policy, target, guide, distil } = form.elements;
  const wrong = $(".wrong", form);
  wrong.textContent = "";
  try {
    await call("POST", "/v1/rewards", {
      dataset: dataset.value, target: Number(target.value), guide: guide.checked, distil: distil.checked,
      ...(policy.value ? { policy: policy.value } : {}),
    });
    $("#live").textContent = "The training waits for its turn.";
    await refresh();
    if ($("#list").getBoundingClientRect().top > innerHeight / 2) $("#list").scrollIntoView(); // on a phone it is below
  } catch (fault) {
    wrong.textContent = fault.message;
  }
});

/* The list */

const inForce = () => call("GET", "/v1/policies").then((answer) => answer.data).catch(() => policies);

async function refresh() {
  clearTimeout(timer);
  let pause = 6000;
  try {
    const dataset = form.elements.dataset.value;
    policies = await inForce();
    const { data } = await call("GET", `/v1/rewards${dataset ? `?dataset=${encodeURIComponent(dataset)}` : ""}`);
    const list = $("#list");
    const nodes = await Promise.all(data.slice(0, 20).map(node));
    nodes.forEach((one, place) => {
      if (list.children[place] !== one) list.insertBefore(one, list.children[place] ?? null);
    });
    while (list.children.length > Math.max(nodes.length, 1)) list.lastChild.remove();
    if (!nodes.length) {
      list.replaceChildren(el("p", { class: "soft" }, "No reward of these labels yet."));
    } else {
      for (const child of [...list.children]) if (!nodes.includes(child)) child.remove();
    }
    if (data.some((one) => RUNNING.includes(one.status))) pause = 700;
  } catch (fault) {
    if (fault.status === 401) return location.reload();
    say(fault.message);
  }
  timer = setTimeout(refresh, document.hidden ? 10000 : pause);
}

/** The article of a reward; made anew only when its state has changed, so that a form keeps its focus. */
async function node(reward) {
  const before = shown.get(reward.id);
  if (before && before[0] === reward.status) {
    progress(before[1], reward);
    standing(before[1], reward);
    return before[1];
  }
  if (before) $("#live").textContent = `Reward ${WORDS[reward.status]}.`;
  const article = el("article", { class: "sheet reward", "data-id": reward.id },
    el("header", {},
      el("h2", {}, reward.dataset),
      el("span", { class: `pill ${reward.status}` }, WORDS[reward.status]),
      el("span", { class: "small soft number" }, `${when(1000 * reward.created)} · ${reward.created_by.split("/").pop()} · `, el("code", { title: reward.id }, reward.id.slice(0, 12))),
    ), el("p", { class: "standing small soft" }));
  if (RUNNING.includes(reward.status)) {
    article.append(
      el("div", { class: "fields" },
        el("progress", { max: 1, value: 0, "aria-label": "Progress" }),
        el("div", { class: "row" }, el("span", { class: "stage soft small" }), el("span", { class: "soft small number percent" })),
      ),
      el("div", { class: "row" }, el("button", { type: "button", disabled: reward.status === "cancelling", onclick: () => cancel(reward) }, "Cancel")),
    );
    progress(article, reward);
  } else if (reward.status === "ready") {
    try {
      const { card } = await call("GET", `/v1/rewards/${reward.id}`);
      article.append(...cardOf(reward, card));
    } catch (fault) {
      if (fault.status === 401) throw fault;
      article.append(el("p", { class: "wrong" }, `Its card cannot be shown: ${fault.message}`));
      return article; // and is asked for again
    }
  } else if (reward.error) {
    article.append(el("p", { class: reward.status === "failed" ? "wrong" : "soft" }, reward.error));
  } else {
    article.append(el("p", { class: "soft" }, "Nothing was changed."));
  }
  standing(article, reward);
  if (before) before[1].replaceWith(article);
  shown.set(reward.id, [reward.status, article]);
  return article;
}

/** What it was calibrated for, and whether it is in force now. */
function standing(article, reward) {
  const { policy, target } = reward.recipe ?? {};
  const now = policies.filter((one) => one.reward === reward.id);
  const force = now.map((one) => `${one.disabled ? "behind" : "in force as"} ${one.id} version ${one.version}${one.disabled ? ", which is switched off" : ""}`);
  $(".standing", article).textContent = [
    policy && `Calibrated for ${policy}, to deliver at most ${100 * target} % malign`,
    reward.status === "ready" && (force.join(", ") || "not in force"),
  ].filter(Boolean).join(" · ");
}

function progress(article, reward) {
  const bar = $("progress", article);
  if (!bar) return;
  bar.value = reward.progress;
  $(".stage", article).textContent = STAGES[reward.stage] ?? reward.stage.replaceAll("_", " ");
  $(".percent", article).textContent = `${Math.round(100 * reward.progress)} %`;
}

async function cancel(reward) {
  try {
    await call("POST", `/v1/rewards/${reward.id}/cancel`);
  } catch (fault) {
    say(fault.message);
  }
  await refresh();
}

/* The card */

const fact = (term, value, note) =>
  el("div", {}, el("dt", {}, term), el("dd", {}, value, note ? el("small", {}, ` ${note}`) : null));

function cardOf(reward, card) {
  const counts = card.counts ?? {};
  const labels = Object.values(counts).reduce((sum, one) => sum + one, 0);
  const number = (value, digits) => (typeof value === "number" ? value.toFixed(digits) : "–");
  const parts = [
    el("p", { class: "soft" }, card.dataset?.question ?? ""),
    el("dl", { class: "facts" },
      fact("Labels", labels, `${counts.malign ?? 0} malign${card.purged ? `, ${card.purged} more purged` : ""}${card.unreadable ? `, ${card.unreadable} more unreadable` : ""}`),
      fact("A person's time", duration(card.label_seconds ?? 0), count((card.annotators ?? []).length, "person", "people")),
      fact("AUC", number(card.auc, 3), "cross-validated"),
      fact("Training", duration(card.trained_seconds ?? 0)),
    ),
    el("div", { class: "evidence" },
      el("section", {}, el("h3", {}, "Calibration"), curve(points(card.calibration_curve))),
      el("section", {}, el("h3", {}, "Where it is most wrong"), mistakes(reward, card)),
    ),
    card.inputs?.words ? el("p", { class: "soft" }, `Thresholds were chosen on images ${card.inputs.words}.`) : null,
    thresholds(card, policies.find((one) => one.id === reward.recipe?.policy)),
    force(reward, card),
  ];
  return parts.filter(Boolean);
}

/** [{score, benign, labels}] from what the card says. */
function points(given) {
  return (given ?? []).map((point) =>
    Array.isArray(point)
      ? { score: point[0], benign: point[1], labels: point[2] }
      : {
          score: point.predicted ?? point.score ?? point.mean_score,
          benign: point.observed ?? point.benign ?? point.share_benign,
          labels: point.labels ?? point.count ?? point.n,
        },
  ).filter((point) => Number.isFinite(point.score) && Number.isFinite(point.benign));
}

function curve(seen) {
  const size = 150;
  const x = (value) => 26 + value * size;
  const y = (value) => 6 + (1 - value) * size;
  const alt = seen.map((p) => `score ${p.score.toFixed(2)}: ${Math.round(100 * p.benign)} % benign`).join("; ");
  const svg = el("svg", { class: "curve", viewBox: `0 0 ${size + 36} ${size + 34}`, role: "img", "aria-label": `Calibration curve. ${alt || "Too few labels."}` },
    el("rect", { class: "frame", x: x(0), y: y(1), width: size, height: size, rx: 3 }),
    el("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }),
    el("polyline", { class: "seen", points: seen.map((p) => `${x(p.score)},${y(p.benign)}`).join(" ") }),
    ...seen.map((p) => el("circle", { cx: x(p.score), cy: y(p.benign), r: Math.min(2.5 + Math.sqrt(p.labels ?? 1) / 3, 6) },
      el("title", {}, `${Math.round(100 * p.benign)} % benign at a score of ${p.score.toFixed(2)}${p.labels ? `, ${p.labels} labels` : ""}`))),
    el("text", { x: x(0), y: size + 19 }, "0"),
    el("text", { x: x(0.5), y: size + 19, "text-anchor": "middle" }, "score"),
    el("text", { x: x(1), y: size + 19, "text-anchor": "end" }, "1"),
    el("text", { x: -y(0.5), y: 14, transform: "rotate(-90)", "text-anchor": "middle" }, "share benign"),
  );
  return svg;
}

function mistakes(reward, card) {
  const found = (card.mistakes ?? []).slice(0, 12);
  if (!found.length) return el("p", { class: "soft small" }, "None among its labels.");
  return el("ul", { class: "pictures" }, ...found.map((one) =>
    el("li", {},
      picture(`/v1/datasets/${encodeURIComponent(reward.dataset)}/images/${encodeURIComponent(one.id)}`, `labelled ${one.label}, scored ${Number(one.score).toFixed(2)}`),
      el("span", {}, one.label), el("span", { class: "number" }, `score ${Number(one.score).toFixed(2)}`),
    )));
}

function thresholds(card, now) {
  const rows = Object.entries(card.calibrations ?? {});
  const skipped = Object.entries(card.not_calibrated ?? {});
  if (!rows.length && !skipped.length) return null;
  return el("table", { class: "table" },
    el("thead", {}, el("tr", {}, el("th", {}, "Steps"), el("th", {}, "Threshold"), el("th", {}, "Draws accepted"), now?.acceptance && el("th", {}, `${now.id} version ${now.version}`))),
    el("tbody", {},
      ...rows.map(([steps, one]) => el("tr", {}, el("td", {}, steps), el("td", {}, one.threshold?.toFixed(4) ?? "–"), el("td", {}, `${(100 * one.acceptance).toFixed(1)} %`),
        now?.acceptance && el("td", {}, steps in now.acceptance ? `${(100 * now.acceptance[steps]).toFixed(1)} %` : "–"))),
      ...skipped.map(([steps, why]) => el("tr", {}, el("td", {}, steps), el("td", { colspan: 3, class: "soft" }, why))),
    ));
}

/* Putting it in force */

function force(reward, card) {
  const base = reward.recipe?.policy ?? "";
  const options = policies.filter((policy) => policy.model === card.dataset?.model && judged(policy));
  if (base && !options.some((policy) => policy.id === base)) options.unshift({ id: base });
  const select = el("select", {}, ...options.map((policy) => el("option", { value: policy.id, selected: policy.id === base }, named(policy))));
  const name = el("input", { value: base, maxlength: 64, pattern: "[a-z0-9][a-z0-9._\\-]{0,63}", spellcheck: "false" });
  const wrong = el("p", { class: "wrong", role: "alert" });
  const make = el("button", { type: "submit", class: "main" }, "Make a version");
  const promote = el("button", { type: "button", class: "act", hidden: true }, "Promote");
  const said = el("p", { class: "soft small", role: "status" },
    "A version of a policy takes this reward's judge, guides and thresholds. Nothing changes until it is promoted.");
  let version = null;
  const attempt = async (button, work) => {
    wrong.textContent = "";
    button.disabled = true;
    try {
      await work();
    } catch (fault) {
      wrong.textContent = explain(fault);
    } finally {
      button.disabled = false;
    }
  };
  const made = el("form", { class: "force", onsubmit: (event) => {
    event.preventDefault();
    attempt(make, async () => {
      const answer = await call("POST", "/v1/policies", { name: name.value, based_on: select.value, reward: reward.id });
      version = answer.version;
      name.readOnly = true; // the version is of this name
      const rest = may(session, "approve") ? "" : ` Somebody with the approve scope puts it in force: winnow policies promote ${name.value} ${version}.`;
      said.textContent = `Version ${version} of ${name.value} is made. It is not in force yet.${rest}`;
      promote.textContent = `Promote ${name.value} version ${version}`;
      promote.hidden = !may(session, "approve");
      make.classList.remove("main");
      if (!promote.hidden) promote.focus();
    });
  } },
    el("h3", {}, "Put it in force"),
    said,
    el("div", { class: "row" },
      el("label", {}, "As policy", name), el("label", {}, "Which samples like", select)),
    el("div", { class: "row" }, make, promote),
    wrong,
  );
  promote.addEventListener("click", () => attempt(promote, async () => {
    await call("POST", `/v1/policies/${encodeURIComponent(name.value)}/promote`, { version });
    said.textContent = `${name.value} now censors with this reward.`;
    promote.hidden = true;
    say(`${name.value} is in force.`);
  }));
  return made;
}

function explain(fault) {
  if (fault.status === 404 && fault.code === "not_found") return "This service cannot change policies while it runs.";
  if (fault.status === 405) return "This service cannot change policies while it runs.";
  return fault.message;
}

async function start() {
  session = await door("label", "approve");
  form.hidden = !may(session, "label");
  const listed = form.hidden ? { data: [] } : await call("GET", "/v1/datasets");
  datasets = listed.data.filter((one) => one.purpose === "labels");
  policies = await inForce();
  const wanted = new URLSearchParams(location.search).get("dataset");
  form.elements.dataset.replaceChildren(
    ...datasets.map((one) => el("option", { value: one.name, selected: one.name === wanted }, one.name)));
  $("button.act", form).disabled = !datasets.length;
  if (!datasets.length) $("#counts").textContent = "No labels yet.";
  describe();
  if (wanted && !form.hidden && !datasets.some((one) => one.name === wanted)) {
    const other = listed.data.some((one) => one.name === wanted);
    $(".wrong", form).textContent = other ? `${wanted} is a certificate's: nothing learns from it.` : `There are no labels named ${wanted}.`;
  }
  show("rewards");
  await refresh();
}

start().catch((fault) => say(fault.message, 30));
