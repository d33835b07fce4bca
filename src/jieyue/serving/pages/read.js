const WORDS = {
  en: {
    passage: "Passage", question: "Question", ask: "Ask", "passage-hint": "Paste the text to look in", "question-hint": "What do you want to know?",
    none: "The text does not answer this.", sure: "confidence", unreachable: "The server cannot be reached.",
    busy: "The server is busy. Try again in a moment.", "needs-key": "A key is needed.", key: "Key", enter: "Enter",
    "page-chat": "Chat", "page-read": "Read", "page-title": "Title",
  },
  zh: {
    passage: "文章", question: "问题", ask: "提问", "passage-hint": "把要查找的文字贴在这里", "question-hint": "你想知道什么？",
    none: "文章里没有答案。", sure: "把握", unreachable: "连不上服务器。", busy: "服务器正忙，请稍后再试。",
    "needs-key": "需要密钥。", key: "密钥", enter: "确定", "page-chat": "聊天", "page-read": "阅读", "page-title": "标题",
  },
};
function line(tag, name, content) {
  const made = document.createElement(tag);
  made.className = name;
  made.textContent = content;
  return made;
}
async function start() {
  try { $("model").textContent = (await models("read"))[0]; } catch (error) { $("model").textContent = error.message; }
  $("form").onsubmit = async event => {
    event.preventDefault();
    $("send").disabled = true;
    const passage = $("passage").value;
    try {
      const found = await (await ask("/v1/read", { question: $("question").value, passages: [passage] })).json();
      const sure = line("p", "muted", say("sure") + " " + Math.round(100 * found.confidence) + " %");
      if (!found.answer) $("found").replaceChildren(line("p", "answer", say("none")), sure);
      else {
        const shown = line("p", "text", ""), characters = [...passage];
        shown.append(characters.slice(0, found.start).join(""), line("mark", "", found.answer), characters.slice(found.end).join(""));
        $("found").replaceChildren(line("p", "answer", found.answer), sure, shown);
      }
    } catch (error) { $("found").replaceChildren(line("p", "problem", error.message)); }
    $("send").disabled = false;
  };
}
