// The policies: what is in force, which versions there are, and who changed what.

import { $, call, door, el, say, show, sure, when } from "/pages/api.js";

const short = (sha256) => sha256?.replace("sha256:", "").slice(0, 12) ?? "none";
const thresholds = (found) =>
  Object.entries(found ?? {}).map(([steps, value]) => `${value.toFixed(4)} at ${steps} steps`).join(", ") || "none";

/** Ask, do, say how it went, and show the list anew. */
async function change(policy, how, body, title, text, action) {
  if (!await sure(title, text, action)) return;
  try {
    const now = await call("POST", `/v1/policies/${encodeURIComponent(policy)}/${how}`, body);
    say(now.disabled ? `${policy} is switched off.` : `${policy} version ${now.version} is in force.`);
  } catch (fault) {
    say(fault.message, 12);
  }
  await list();
}

const promote = (policy, version, off) => change(policy, "promote", { version }, `Put ${policy} version ${version} in force?`,
  `${off ? `${policy} is switched on again. ` : ""}Every request that begins from then on is censored by this version; requests that run keep theirs.`, "Promote");
const rollback = (policy) => change(policy, "rollback", undefined, `Roll ${policy} back?`,
  "The version comes back that was in force before the last promotion.", "Roll back");
const disable = (policy) => change(policy, "disable", undefined, `Switch ${policy} off?`,
  "Within two seconds nothing leaves under it any more, not even what runs. A promotion switches it on again.", "Switch off");

function versions(policy, found) {
  return el("div", { class: "wide" }, el("table", { class: "table" },
    el("thead", {}, el("tr", {}, ...["Version", "", "Judge", "Thresholds", "Reward", "Made", ""].map((name) => el("th", {}, name)))),
    el("tbody", {}, ...found.data.map((one) => {
      const here = one.version === found.in_force?.version;
      const off = found.in_force?.disabled;
      const state = here ? (off ? "switched off" : "in force") : one.version === found.in_force?.shadow ? "shadow" : "";
      return el("tr", {},
        el("td", {}, one.version), el("td", {}, state), el("td", {}, el("code", {}, short(one.networks?.judge))),
        el("td", {}, one.networks ? thresholds(one.thresholds) : "cannot be read by this Winnow"),
        el("td", {}, one.reward ? el("code", {}, one.reward.slice(0, 12)) : "the bundle's"),
        el("td", {}, `${when(one.created)}, ${one.created_by}`),
        el("td", {}, here && !off ? null : el("button", { type: "button", onclick: () => promote(policy.id, one.version, off) }, here ? "Switch on" : "Promote")));
    }))));
}

function happened(found) {
  return el("ol", { class: "happened" }, ...found.data.map((one) => {
    const version = one.detail.shadow ?? one.detail.version;
    return el("li", {},
      el("span", { class: "number soft" }, when(one.created)),
      el("span", {}, `${one.action.replace("policy.", "")}${version ? ` version ${version}` : ""}`),
      el("span", { class: "soft" }, one.actor));
  }));
}

async function article(policy, open) {
  const path = `/v1/policies/${encodeURIComponent(policy.id)}`;
  const [made, told] = await Promise.all([call("GET", `${path}/versions`), call("GET", `${path}/history`)]);
  const certified = Object.entries(policy.certificates);
  const fold = (name, text, ...inside) =>
    el("details", { "data-fold": `${policy.id} ${name}`, open: open.has(`${policy.id} ${name}`) }, el("summary", {}, text), ...inside);
  return el("article", { class: "sheet policy" },
    el("header", {},
      el("h2", {}, policy.id),
      el("span", { class: `pill ${policy.disabled ? "failed" : "ready"}` }, policy.disabled ? "switched off" : "in force"),
      policy.default ? el("span", { class: "pill" }, "default") : null,
      el("span", { class: "small soft number" }, `version ${policy.version} · model ${policy.model}`)),
    el("p", {}, policy.censors
      ? el("span", {}, "Holds back where yes: ", el("strong", {}, policy.censors))
      : policy.ready ? "Censors nothing; only admins may use it."
        : "Has no reward yet, and refuses every request: label images, train one, and promote it."),
    policy.censors ? el("dl", { class: "particulars" },
      el("dt", {}, "threshold"), el("dd", {}, thresholds(policy.thresholds)),
      el("dt", {}, "draws"), el("dd", {}, `at most ${policy.max_draws} an image`),
      el("dt", {}, "certified"), el("dd", {}, ...(certified.length
        ? certified.flatMap(([steps, id], n) => [n ? ", " : "", el("a", { href: `/certificates/${id}` }, `at ${steps} steps`)])
        : ["no"]))) : null,
    el("div", { class: "row" },
      el("button", { type: "button", disabled: policy.disabled, onclick: () => rollback(policy.id) }, "Roll back"),
      policy.disabled
        ? el("button", { type: "button", class: "main", onclick: () => promote(policy.id, policy.version, true) }, "Switch on")
        : el("button", { type: "button", onclick: () => disable(policy.id) }, "Switch off")),
    fold("versions", `Versions (${made.data.length})`, versions(policy, made)),
    fold("history", "History", happened(told)));
}

async function list() {
  const { data } = await call("GET", "/v1/policies");
  const open = new Set([...document.querySelectorAll("details[open]")].map((one) => one.dataset.fold));
  $("#list").replaceChildren(...await Promise.all(data.map((policy) => article(policy, open))));
}

async function start() {
  await door("approve");
  await list();
  show("policies");
}

start().catch((fault) => say(fault.message, 30));
