const log = $("log"), text = $("text");
let turns = [], running = null, model = null, editing = null;
try { turns = JSON.parse(store.get("turns") || "[]"); } catch { turns = []; }

function element(tag, name, content) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (content !== undefined) made.textContent = content;
  return made;
}
function button(word, action) {
  const made = element("button", "plain", say(word));
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}
function drawn(turn, number) {
  const box = element("div", "turn " + turn.role + (turn.waiting ? " waiting" : ""));
  const words = element("p", "", turn.content);
  words.setAttribute("aria-label", say(turn.role === "user" ? "you" : "it") + ": " + turn.content);
  words.dir = "auto";
  if (turn.content || turn.waiting) box.append(words);
  if (turn.note) box.append(element("span", turn.problem ? "problem" : "muted", turn.problem ? turn.note : say(turn.note)));
  if (!running) {
    const actions = element("div", "actions");
    if (turn.role === "user") actions.append(button("edit", () => edit(number)));
    else if (number === turns.length - 1) actions.append(button("again", again));
    if (actions.childNodes.length) box.append(actions);
  }
  return box;
}
function redraw() {
  if (!turns.length) {
    const empty = element("div", "empty");
    empty.append(element("h2", "", say("welcome")), element("p", "", say("about")));
    log.replaceChildren(empty);
  } else log.replaceChildren(...turns.map(drawn));
  $("send").hidden = Boolean(running);
  $("stop").hidden = !running;
  $("clear").disabled = Boolean(running) || !turns.length;
  log.scrollTop = log.scrollHeight;
}
function keep() { store.set("turns", JSON.stringify(turns.map(({ role, content, note, problem }) => ({ role, content, note, problem })))); }
function grow() { text.style.height = "auto"; text.style.height = text.scrollHeight + 2 + "px"; }

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
async function reply() {
  const turn = { role: "assistant", content: "", waiting: true };
  const said = turns.filter(one => one.content).map(({ role, content }) => ({ role, content }));
  turns.push(turn);
  running = new AbortController();
  redraw();
  const words = log.lastElementChild.querySelector("p");
  try {
    const answer = await ask("/v1/chat/completions", { model, messages: said, stream: true }, running.signal);
    for await (const event of events(answer)) {
      if (event.error) throw new Problem(event.error.message);
      const choice = event.choices[0];
      if (!choice) continue;
      if (choice.delta.content) {
        const near = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
        turn.content += choice.delta.content;
        words.textContent = turn.content;
        if (near) log.scrollTop = log.scrollHeight;
      }
      if (choice.finish_reason === "length") turn.note = "length";
    }
    if (!turn.content) turn.note = "nothing";
  } catch (error) {
    if (error.name === "AbortError") turn.note = "stopped";
    else { turn.note = error instanceof Problem ? error.message : say("unreachable"); turn.problem = true; }
  }
  turn.waiting = false;
  running = null;
  keep();
  redraw();
  text.focus();
}
function send() {
  const content = text.value.trim();
  if (!content || running || !model) return;
  if (editing !== null) turns.length = editing;
  editing = null;
  turns.push({ role: "user", content });
  text.value = "";
  grow();
  keep();
  reply();
}
function again() {
  if (running) return;
  if (turns.length && turns[turns.length - 1].role === "assistant") turns.pop();
  if (turns.length) reply();
}
function edit(number) {
  if (running) return;
  editing = number;
  text.value = turns[number].content;
  grow();
  text.focus();
  text.setSelectionRange(text.value.length, text.value.length);
}
$("composer").addEventListener("submit", event => { event.preventDefault(); send(); });
text.addEventListener("input", grow);
text.addEventListener("keydown", event => {
  if (event.isComposing || event.keyCode === 229) return;
  if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); send(); }
  if (event.key === "ArrowUp" && !text.value) {
    const number = turns.map(turn => turn.role).lastIndexOf("user");
    if (number >= 0) { event.preventDefault(); edit(number); }
  }
});
document.addEventListener("keydown", event => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if (editing !== null) { editing = null; text.value = ""; grow(); }
});
$("stop").addEventListener("click", () => running && running.abort());
$("clear").addEventListener("click", () => { turns = []; editing = null; keep(); redraw(); text.focus(); });
$("models").addEventListener("change", () => { model = $("models").value; });
async function start() {
  try {
    const names = await models("chat");
    model = names[0];
    $("model").textContent = names.length === 1 ? model : "";
    $("models").hidden = names.length < 2;
    $("models").replaceChildren(...names.map(name => new Option(name, name)));
  } catch (error) { $("model").textContent = error.message; }
}
translate();
redraw();
start();
