const WORDS = {
  en: { text: "Text", ask: "Tag", "text-hint": "Paste the text whose entities to find", none: "No entity was found." },
  zh: { text: "文字", ask: "标注", "text-hint": "把要找实体的文字贴在这里", none: "没有找到实体。" },
};
const share = value => (100 * value).toFixed(1) + " %";
function marked(found, text) {
  const shown = element("p", "text", ""), characters = [...text];
  let at = 0;
  for (const { start, end, type } of found.entities) {
    const mark = element("mark", "", characters.slice(start, end).join(""));
    mark.append(" ", element("small", "muted", type));
    shown.append(characters.slice(at, start).join(""), mark);
    at = end;
  }
  shown.append(characters.slice(at).join(""));
  return shown;
}
async function start() {
  await named("tag");
  $("form").onsubmit = async event => {
    event.preventDefault();
    $("send").disabled = true;
    const text = $("passage").value;
    try {
      const [found] = (await (await ask("/v1/tag", { texts: [text] })).json()).answers;
      const told = found.entities.map(one => one.text).join(", ") || say("none");
      const parts = [element("p", "answer", told)];
      if (found.confidence !== null) parts.push(element("p", "muted", say("sure") + " " + share(found.confidence)));
      $("found").replaceChildren(...parts, marked(found, text));
    } catch (error) { $("found").replaceChildren(element("p", "problem", error.message)); }
    $("send").disabled = false;
  };
}
