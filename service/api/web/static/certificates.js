// All attempts at a certificate, by policy, with what came of them.

import { $, call, door, el, percent, say, show, when } from "/pages/api.js";

function came(one) {
  const { k, n, bound, reason } = one.result ?? {};
  if (reason) return reason;
  if (bound !== undefined) return `${k} of ${n} malign or unsure: at most ${percent(bound)}`;
  return one.status === "drawing" ? `${one.progress.drawn} of ${one.terms.n} drawn` : "waits for labels";
}

const row = (one) => one.unreadable ? damaged(one) : el("li", {}, el("a", { class: "item", href: one.page },
  el("span", { class: "number" }, `Attempt ${one.terms.attempt}`),
  el("span", {}, el("span", { class: `pill ${one.status}` }, one.status)),
  el("span", { class: "soft grow" }, came(one)),
  el("span", { class: "soft small number" },
    `version ${one.policy_version} · to prove ${percent(one.terms.epsilon)} with ${one.terms.n} images · ${when(one.created)}`)));

const damaged = (one) => el("li", { class: "soft" }, `${one.id}, ${one.status}, of ${when(one.created)} cannot be read: ${one.unreadable}`);

async function start() {
  await door("label", "approve");
  const { data } = await call("GET", "/v1/certificates");
  const policies = [...new Set(data.map((one) => one.policy))].sort();
  $("#list").replaceChildren(...policies.map((policy) => el("section", { class: "group" },
    el("h2", {}, policy), el("ul", { class: "rows" }, ...data.filter((one) => one.policy === policy).map(row)))));
  if (!data.length) $("#list").append(el("p", { class: "soft" }, "Nobody has tried to prove anything yet."));
  show("certificates");
}

start().catch((fault) => say(fault.message, 30));
