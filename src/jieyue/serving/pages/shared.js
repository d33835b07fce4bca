"use strict";
const $ = id => document.getElementById(id);
const store = {
  get(name) { try { return sessionStorage.getItem("jieyue." + name); } catch { return null; } },
  set(name, value) { try { sessionStorage.setItem("jieyue." + name, value); } catch { /* full or forbidden: only for this visit */ } },
};
let language = store.get("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
if (!(language in SHARED)) language = "en";
const say = name => WORDS[language][name] ?? SHARED[language][name] ?? name;
function translate() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-say]")) element.textContent = say(element.dataset.say);
  for (const element of document.querySelectorAll("[data-hint]")) element.placeholder = say(element.dataset.hint);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", say(element.dataset.label));
  $("language").textContent = language === "zh" ? "English" : "中文";
  $("language").lang = language === "zh" ? "en" : "zh-CN";
}
$("language").addEventListener("click", () => {
  language = language === "zh" ? "en" : "zh";
  store.set("language", language);
  translate();
  if (typeof redraw === "function") redraw();
});
$("key-form").addEventListener("submit", event => {
  event.preventDefault();
  store.set("key", $("key").value.trim());
  $("key").value = "";
  $("key-form").hidden = true;
  start();
});
function element(tag, name, content) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (content !== undefined) made.textContent = content;
  return made;
}
class Problem extends Error {}
async function ask(path, body, signal) {
  const headers = { "content-type": "application/json" }, key = store.get("key");
  if (key) headers.authorization = "Bearer " + encodeURIComponent(key).replace(/%[0-9A-F]{2}/g, "?");
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(say("unreachable"), { cause: "unreachable" });
  }
  if (answer.ok) return answer;
  if (answer.status === 401) {
    store.set("key", "");
    $("key-form").hidden = false;
    $("key").focus();
    throw new Problem(say(key ? "wrong-key" : "needs-key"));
  }
  let text = "";
  try { text = (await answer.json()).error.message; } catch { /* not ours */ }
  throw new Problem(answer.status === 429 ? say("busy") : text || String(answer.status));
}
async function models(kind) {
  const rows = (await (await ask("/v1/models")).json()).data;
  const others = { chat: "/", read: "/read", title: "/title", classify: "/classify", tag: "/tag" };
  const links = [...new Set(rows.map(row => row.kind))].filter(other => other !== kind && others[other]);
  $("pages").replaceChildren(...links.map(other => {
    const link = element("a");
    link.href = others[other];
    link.dataset.say = "page-" + other;
    return link;
  }));
  translate();
  return rows.filter(row => row.kind === kind).map(row => row.id);
}
/* The first model of that kind by name; while the server cannot be reached it is asked again. */
async function named(kind) {
  try {
    const names = await models(kind);
    $("model").textContent = names[0];
    return names;
  } catch (error) {
    $("model").textContent = error.message;
    if (error.cause === "unreachable") setTimeout(start, 2000);
    return [];
  }
}
