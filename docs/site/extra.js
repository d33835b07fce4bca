/* What the theme leaves out for those who do not see the page: a name for the search dialog, tables that scroll by the keyboard. */
document$.subscribe(() => {
  const zh = document.documentElement.lang.startsWith("zh")
  document.querySelectorAll(".md-search[role=dialog]").forEach(one => one.setAttribute("aria-label", zh ? "搜索" : "Search"))
  setTimeout(() => document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach(one => {
    if (one.scrollWidth > one.clientWidth) one.tabIndex = 0
  }))
})
