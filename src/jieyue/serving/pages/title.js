const WORDS = {
  en: {
    text: "Text", ask: "Write a title", "text-hint": "Paste the text that needs a title", unreachable: "The server cannot be reached.",
    busy: "The server is busy. Try again in a moment.", "needs-key": "A key is needed.", key: "Key", enter: "Enter",
    "page-chat": "Chat", "page-read": "Read", "page-title": "Title",
  },
  zh: {
    text: "正文", ask: "写标题", "text-hint": "把需要标题的文字贴在这里", unreachable: "连不上服务器。", busy: "服务器正忙，请稍后再试。",
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
  try { $("model").textContent = (await models("title"))[0]; } catch (error) { $("model").textContent = error.message; }
  $("form").onsubmit = async event => {
    event.preventDefault();
    $("send").disabled = true;
    try {
      const found = await (await ask("/v1/title", { text: $("passage").value })).json();
      $("found").replaceChildren(line("p", "answer", found.title));
    } catch (error) { $("found").replaceChildren(line("p", "problem", error.message)); }
    $("send").disabled = false;
  };
}
