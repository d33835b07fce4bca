const WORDS = {
  en: {
    passage: "Passages", question: "Question", ask: "Ask", "passage-hint": "Paste a text to look in", "question-hint": "What do you want to know?",
    none: "The texts do not answer this.", more: "Add a passage", less: "Remove", place: "Passage", others: "Other answers, with their votes",
  },
  zh: {
    passage: "文章", question: "问题", ask: "提问", "passage-hint": "把要查找的文字贴在这里", "question-hint": "你想知道什么？",
    none: "文章里没有答案。", more: "再加一篇", less: "移除", place: "文章", others: "其他答案及其得票",
  },
};
const MOST = 64, share = value => Math.round(100 * value) + " %";
function add() {
  const row = element("div", "passage"), box = element("textarea", "box"), remove = element("button", "plain", say("less"));
  box.rows = 4;
  box.dataset.hint = "passage-hint";
  box.placeholder = say("passage-hint");
  box.dataset.label = "passage";
  box.setAttribute("aria-label", say("passage"));
  remove.type = "button";
  remove.dataset.say = "less";
  remove.addEventListener("click", () => { row.remove(); counted(); });
  row.append(box, remove);
  $("passages").append(row);
  counted();
  return box;
}
function counted() {
  const rows = [...$("passages").children];
  for (const row of rows) row.lastChild.hidden = rows.length === 1;
  $("more").disabled = rows.length >= MOST;
}
function answered(found, passages) {
  const sure = element("p", "muted", say("sure") + " " + share(found.confidence));
  const parts = [element("p", "answer", found.answer || say("none")), sure];
  if (found.answer) {
    const at = Math.max(found.passage ?? 0, 0), shown = element("p", "text", ""), characters = [...passages[at]];
    shown.append(characters.slice(0, found.start).join(""), element("mark", "", found.answer), characters.slice(found.end).join(""));
    if (passages.length > 1) parts.push(element("p", "muted", say("place") + " " + (at + 1)));
    parts.push(shown);
  }
  if (found.rivals?.length) {
    const list = element("ol", "rivals");
    list.append(...found.rivals.map(rival => {
      const line = element("li", "", (rival.answer || say("none")) + " ");
      line.append(element("span", "muted", share(rival.vote)));
      return line;
    }));
    parts.push(element("p", "muted", say("others")), list);
  }
  return parts;
}
$("more").addEventListener("click", () => add().focus());
async function start() {
  await named("read");
  $("form").onsubmit = async event => {
    event.preventDefault();
    $("send").disabled = true;
    const passages = [...$("passages").querySelectorAll("textarea")].map(box => box.value).filter(text => text.trim());
    try {
      const found = await (await ask("/v1/read", { question: $("question").value, passages })).json();
      $("found").replaceChildren(...answered(found, passages));
    } catch (error) { $("found").replaceChildren(element("p", "problem", error.message)); }
    $("send").disabled = false;
  };
}
