/* What the theme leaves out for those who do not see the page: names for the search dialog and the buttons of code, tables and
   code that scroll by the keyboard. The theme adds some of them late, so this is done whenever something is added. */
const complete = () => {
  const zh = document.documentElement.lang.startsWith("zh")
  document.querySelectorAll(".md-search[role=dialog]").forEach(one => one.setAttribute("aria-label", zh ? "搜索" : "Search"))
  document.querySelectorAll(".md-code__nav").forEach((one, at) => one.setAttribute("aria-label", `${zh ? "代码" : "Code"} ${at + 1}`))
  document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code, .formula").forEach(one => {
    if (one.scrollWidth > one.clientWidth) one.tabIndex = 0
  })
}
document$.subscribe(complete)
new MutationObserver(complete).observe(document.body, {childList: true, subtree: true})
