const WORDS = {
  en: { text: "Text", ask: "Write a title", "text-hint": "Paste the text that needs a title" },
  zh: { text: "正文", ask: "写标题", "text-hint": "把需要标题的文字贴在这里" },
};
async function start() {
  await named("title");
  $("form").onsubmit = async event => {
    event.preventDefault();
    $("send").disabled = true;
    try {
      const found = await (await ask("/v1/title", { text: $("passage").value })).json();
      $("found").replaceChildren(element("p", "answer", found.title));
    } catch (error) { $("found").replaceChildren(element("p", "problem", error.message)); }
    $("send").disabled = false;
  };
}
