/* Markdown as a few harmless elements: no HTML of the model's own, no pictures, no link but http and mail. */
const markdown = window.markdownit({ html: false, linkify: false, breaks: true }).disable("image");
for (const name of ["th_open", "td_open"]) {
  markdown.renderer.rules[name] = (tokens, at, options, env, self) => { tokens[at].attrs = null; return self.renderToken(tokens, at, options); };
}
DOMPurify.addHook("afterSanitizeAttributes", node => {
  if (node.tagName === "A") { node.target = "_blank"; node.rel = "noopener noreferrer nofollow"; }
});
const ALLOWED = {
  ALLOWED_TAGS: "p br em strong s del code pre blockquote ul ol li h1 h2 h3 h4 h5 h6 hr table thead tbody tr th td a".split(" "),
  ALLOWED_ATTR: ["href", "start"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};
function shownMarkdown(text) {
  try { return DOMPurify.sanitize(markdown.render(text), ALLOWED); } catch { return document.createTextNode(text); }
}
