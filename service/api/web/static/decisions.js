// The latest decisions; each leads to its own page.

import { $, call, count, door, el, say, show, when } from "/pages/api.js";

const form = $(".filters");
const OUTCOMES = {
  ok: "answered", moderation_blocked: "blocked", deadline_exceeded: "deadline", censor_unavailable: "no judge",
};

function words(one) {
  if (one.unreadable) return "damaged";
  if (one.outcome !== "ok") return OUTCOMES[one.outcome] ?? one.outcome.replaceAll("_", " ");
  return one.images_returned === one.images_requested ? "answered" : one.images_returned ? "in part" : "nothing left";
}

const row = (one) => el("li", {}, el("a", { class: "item", href: `/decisions/${one.id}` },
  el("span", { class: "number" }, when(one.created)),
  el("span", {}, el("span", { class: `pill ${one.outcome}` }, words(one))),
  el("span", { class: "grow" }, `${one.policy} `, one.unreadable ? null : el("span", { class: "soft" }, `version ${one.policy_version}`)),
  el("span", { class: "soft small number" }, one.unreadable ? `cannot be read: ${one.unreadable}` :
    `${one.images_returned} of ${count(one.images_requested, "image")}, ${count(one.draws, "draw")} · key ${one.key} · ${one.id.slice(0, 12)}…`)));

async function list() {
  const wanted = new URLSearchParams([...new FormData(form)].filter(([, value]) => value));
  history.replaceState(null, "", wanted.size ? `/decisions?${wanted}` : "/decisions");
  const { data } = await call("GET", `/v1/decisions?${wanted}`);
  $("#list").replaceChildren(...data.map(row));
  if (!data.length) $("#list").append(el("li", { class: "soft" }, wanted.size ? "None is like that." : "Nothing was decided yet."));
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  list().catch((fault) => say(fault.message));
});
form.addEventListener("change", () => form.requestSubmit());

async function start() {
  await door("approve");
  const { data } = await call("GET", "/v1/policies");
  form.elements.policy.append(...data.map((one) => el("option", {}, one.id)));
  form.elements.outcome.append(...Object.entries(OUTCOMES).map(([value, word]) => el("option", { value }, word)));
  for (const [name, value] of new URLSearchParams(location.search)) if (form.elements[name]) form.elements[name].value = value;
  await list();
  show("decisions");
}

start().catch((fault) => say(fault.message, 30));
