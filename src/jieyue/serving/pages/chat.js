const log = $("log"), text = $("text"), NUMBERS = ["temperature", "top_p", "top_k", "max_tokens", "seed"];
let turns = kept("turns", []), settings = kept("settings", {}), running = null, model = null, editing = null, draft = "", drawing = 0;
let shown = new Map(); /* turn -> where its words stand now, whatever was drawn anew meanwhile */
if (!Array.isArray(turns)) turns = [];
turns = turns.filter(one => one && ["user", "assistant"].includes(one.role) && typeof one.content === "string");
if (!settings || typeof settings !== "object") settings = {};

function kept(name, otherwise) {
  try { return JSON.parse(store.get(name)) ?? otherwise; } catch { return otherwise; }
}
function button(word, action) {
  const made = element("button", "plain", say(word));
  made.type = "button";
  made.addEventListener("click", () => action(made));
  return made;
}
function write(turn) {
  const words = shown.get(turn);
  if (!words) return;
  words.setAttribute("aria-label", say(turn.role === "user" ? "you" : "it") + ": " + turn.content);
  if (turn.role === "user") words.textContent = turn.content;
  else words.replaceChildren(shownMarkdown(turn.content));
}
function drawn(turn, number) {
  const box = element("div", "turn " + turn.role + (turn.waiting ? " waiting" : "") + (editing !== null && number >= editing ? " going" : ""));
  const words = element("div", "said");
  words.dir = "auto";
  shown.set(turn, words);
  write(turn);
  if (turn.content || turn.waiting) box.append(words);
  if (turn.note) box.append(element("span", turn.problem ? "problem" : "muted", turn.problem ? turn.note : say(turn.note)));
  if (!running) {
    const actions = element("div", "actions");
    if (turn.role === "user") actions.append(button("edit", () => edit(number)));
    else {
      if (turn.content) actions.append(button("copy", made => copy(turn.content, made)));
      if (number === turns.length - 1) actions.append(button("again", again));
    }
    if (actions.childNodes.length) box.append(actions);
  }
  return box;
}
function redraw() {
  const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80, place = log.scrollTop;
  shown = new Map();
  if (!turns.length) {
    const empty = element("div", "empty");
    empty.append(element("h2", "", say("welcome")), element("p", "", say("about")));
    log.replaceChildren(empty);
  } else log.replaceChildren(...turns.map(drawn));
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("clear").disabled = Boolean(running) || !turns.length;
  $("editing").hidden = editing === null;
  log.scrollTop = near ? log.scrollHeight : place;
}
function keep() { store.set("turns", JSON.stringify(turns.map(({ role, content, note, problem }) => ({ role, content, note, problem })))); }
function grow() { text.style.height = "auto"; text.style.height = text.scrollHeight + 2 + "px"; }
async function copy(words, made) {
  try { await navigator.clipboard.writeText(words); } catch { /* not over plain http: the old way */
    const box = element("textarea", "unseen", "");
    box.value = words;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
  }
  made.textContent = say("copied");
  setTimeout(() => { made.textContent = say("copy"); }, 1500);
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    held += value;
    const parts = held.split("\n\n");
    held = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}
function asked(said) {
  const body = { model, messages: said, stream: true };
  if (settings.system) body.messages = [{ role: "system", content: settings.system }, ...said];
  for (const name of NUMBERS) if (Number.isFinite(settings[name])) body[name] = settings[name];
  return body;
}
function soon(turn) {
  if (drawing) return;
  drawing = requestAnimationFrame(() => {
    drawing = 0;
    const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
    write(turn);
    if (near) log.scrollTop = log.scrollHeight;
  });
}
async function reply() {
  const turn = { role: "assistant", content: "", waiting: true };
  const said = turns.filter(one => one.content || !one.problem).map(({ role, content }) => ({ role, content }));
  turns.push(turn);
  running = new AbortController();
  redraw();
  log.scrollTop = log.scrollHeight;
  try {
    const answer = await ask("/v1/chat/completions", asked(said), running.signal);
    for await (const event of events(answer)) {
      if (event.error) throw new Problem(event.error.message);
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.delta.content) { turn.content += choice.delta.content; soon(turn); }
      if (choice.finish_reason === "length") turn.note = "length";
    }
    if (!turn.content) turn.note = "nothing";
  } catch (error) {
    if (error.name === "AbortError") turn.note = "stopped";
    else {
      turn.note = error instanceof Problem ? error.message : say("unreachable");
      turn.problem = true;
      if (!(error instanceof Problem) || error.cause === "unreachable") setTimeout(start, 2000);
    }
  }
  turn.waiting = false;
  running = null;
  keep();
  redraw();
  text.focus();
}
function send() {
  const content = text.value.trim();
  if (!content || running) return;
  if (!model) { start(); return; } /* what was typed stays */
  if (editing !== null) turns.length = editing;
  editing = null;
  draft = "";
  turns.push({ role: "user", content });
  text.value = "";
  grow();
  keep();
  reply();
}
function again() {
  if (running || !model) return;
  editing = null;
  if (turns.length && turns[turns.length - 1].role === "assistant") turns.pop();
  if (turns.length) reply();
}
function edit(number) {
  if (running) return;
  if (editing === null) draft = text.value;
  editing = number;
  text.value = turns[number].content;
  redraw();
  grow();
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
}
function leave() {
  if (editing === null) return;
  editing = null;
  text.value = draft;
  redraw();
  grow();
  text.focus();
}
const isComposing = event => event.isComposing || event.keyCode === 229;
$("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
text.addEventListener("input", grow);
text.addEventListener("keydown", event => {
  if (isComposing(event)) return;
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !text.value && editing === null) {
    const number = turns.map(turn => turn.role).lastIndexOf("user");
    if (number >= 0 && !running) { event.preventDefault(); edit(number); }
  }
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape" || isComposing(event)) return;
  if (running) running.abort();
  else leave();
});
$("stop").addEventListener("click", () => running && running.abort());
$("cancel").addEventListener("click", leave);
$("clear").addEventListener("click", () => { turns = []; editing = null; keep(); redraw(); text.focus(); });
$("models").addEventListener("change", () => { model = $("models").value; });
function fill() {
  $("system").value = typeof settings.system === "string" ? settings.system : "";
  for (const name of NUMBERS) $(name).value = Number.isFinite(settings[name]) ? settings[name] : "";
}
$("settings").addEventListener("input", () => {
  settings = { system: $("system").value.trim() };
  for (const name of NUMBERS) if ($(name).value !== "" && $(name).validity.valid) settings[name] = Number($(name).value);
  store.set("settings", JSON.stringify(settings));
});
$("reset").addEventListener("click", () => { settings = {}; store.set("settings", "{}"); fill(); });
async function start() {
  const names = await named("chat");
  if (!names.length) return;
  if (!names.includes(model)) model = names[0];
  $("model").textContent = names.length === 1 ? model : "";
  $("models").hidden = names.length < 2;
  $("models").replaceChildren(...names.map(name => new Option(name, name, false, name === model)));
}
fill();
translate();
redraw();
start();
