const WORDS = {
  en: { text: "Text", ask: "Classify", "text-hint": "Paste the text to classify", labels: "The likeliest labels", none: "No label" },
  zh: { text: "文字", ask: "分类", "text-hint": "把要分类的文字贴在这里", labels: "最可能的类别", none: "没有类别" },
};
const share = value => (100 * value).toFixed(1) + " %";
function labelled(found) {
  const table = element("table", "labels");
  table.append(element("caption", "muted", say("labels")));
  for (const { label, probability } of found.labels) {
    const row = table.insertRow(), bar = element("meter");
    bar.value = probability;
    bar.setAttribute("aria-label", label);
    row.append(element("th", "", label), element("td"), element("td", "number", share(probability)));
    row.cells[1].append(bar);
  }
  return [element("p", "muted", say("sure") + " " + share(found.confidence)), table];
}
async function start() {
  await named("classify");
  $("form").onsubmit = async event => {
    event.preventDefault();
    $("send").disabled = true;
    try {
      const [found] = (await (await ask("/v1/classify", { texts: [$("passage").value] })).json()).answers;
      const told = found.answer ? found.answer.join(", ") || say("none") : found.label ?? String(found.value);
      $("found").replaceChildren(element("p", "answer", told), ...(found.labels ? labelled(found) : []));
    } catch (error) { $("found").replaceChildren(element("p", "problem", error.message)); }
    $("send").disabled = false;
  };
}
