// The policies: what is in force, which versions there are, and who changed what.

import { $, call, door, el, say, show, sure, when } from "/pages/api.js";

const short = (sha256) => sha256?.replace("sha256:", "").slice(0, 12) ?? "none";
const thresholds = (found) =>
  Object.entries(found ?? {}).map(([steps, value]) => `${value.toFixed(4)} at ${steps} steps`).join(", ") || "none";

/** Ask, do, say how it went, and show the list anew. */
async function change(policy, how, body, title, text, action) {
  if (!await sure(title, text, action)) return;
  try {
    const { data } = await call("GET", "/v1/policies");
    const same = ({ id, version, disabled }) => id === policy.id && version === policy.version && disabled === policy.disabled;
    // To switch off is right whatever is in force; all else was asked for what the page shows.
    if (how !== "disable" && !data.some(same)) {
      throw new Error(`${policy.id} was changed meanwhile, perhaps in another tab: look again.`);
    }
    const now = await call("POST", `/v1/policies/${encodeURIComponent(policy.id)}/${how}`, body);
    say(now.disabled ? `${policy.id} is switched off.` : `${policy.id} version ${now.version} is in force.`);
  } catch (fault) {
    say(fault.message, 12);
  }
  await list();
}

const promote = (policy, version) => change(policy, "promote", { version }, `Put ${policy.id} version ${version} in force?`,
  `${policy.disabled ? `${policy.id} is switched on again. ` : ""}Every request that begins from then on is censored by this version; requests that run keep theirs.`, "Promote");
const rollback = (policy) => change(policy, "rollback", undefined, `Roll ${policy.id} back?`,
  "The version comes back that was in force before the last promotion.", "Roll back");
const disable = (policy) => change(policy, "disable", undefined, `Switch ${policy.id} off?`,
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
        el("td", {}, here && !off ? null : el("button", { type: "button", onclick: () => promote(policy, one.version) }, here ? "Switch on" : "Promote")));
    }))));
}

function happened(found) {
  return el("ol", { class: "happened" }, ...found.data.map((one) => {
    const version = one.detail?.shadow ?? one.detail?.version;
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
      el("button", { type: "button", disabled: policy.disabled, onclick: () => rollback(policy) }, "Roll back"),
      policy.disabled
        ? el("button", { type: "button", class: "main", onclick: () => promote(policy, policy.version) }, "Switch on")
        : el("button", { type: "button", onclick: () => disable(policy) }, "Switch off")),
    fold("versions", `Versions (${made.data.length})`, versions(policy, made)),
    fold("history", "History", happened(told)));
}

/** A policy of which no more can be said than why. */
const sheet = (policy, why, ...inside) => el("article", { class: "sheet policy" },
  el("header", {}, el("h2", {}, policy.id), el("span", { class: "pill failed" }, "cannot be read")),
  el("p", {}, why), ...inside);

/** One whose version in force cannot be read: nothing leaves under it until another is promoted. */
async function damaged(policy) {
  const text = `Nothing leaves under it, until another version is promoted: ${policy.why}`;
  try {
    return sheet(policy, text, versions(policy, await call("GET", `/v1/policies/${encodeURIComponent(policy.id)}/versions`)));
  } catch (fault) {
    return sheet(policy, text, el("p", { class: "soft" }, fault.message));
  }
}

async function list() {
  const { data, unreadable } = await call("GET", "/v1/policies");
  const open = new Set([...document.querySelectorAll("details[open]")].map((one) => one.dataset.fold));
  const articles = data.map((policy) => article(policy, open).catch((fault) => sheet(policy, fault.message)));
  $("#list").replaceChildren(...await Promise.all([...articles, ...unreadable.map(damaged)]));
}

async function start() {
  await door("approve");
  await list();
  show("policies");
}

start().catch((fault) => say(fault.message, 30));
