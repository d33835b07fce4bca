"use strict";
for (const svg of document.querySelectorAll("figure svg")) {
  const points = [...svg.querySelectorAll(".point")].sort((a, b) => a.cx.baseVal.value - b.cx.baseVal.value);
  if (!points.length) continue;
  const words = points.map(point => { const told = point.firstElementChild.textContent; point.replaceChildren(); return told; });
  const tip = document.createElement("p");
  tip.className = "tip";
  tip.setAttribute("role", "status");
  svg.after(tip);
  svg.tabIndex = 0;
  let chosen = 0;
  const show = number => {
    points[chosen].classList.remove("chosen");
    chosen = Math.min(points.length - 1, Math.max(0, number));
    points[chosen].classList.add("chosen");
    tip.textContent = words[chosen];
  };
  const near = event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const far = points.map(point => Math.hypot(point.cx.baseVal.value - at.x, (point.cy.baseVal.value - at.y) / 2));
    show(far.indexOf(Math.min(...far)));
  };
  svg.addEventListener("pointermove", near);
  svg.addEventListener("pointerdown", near);
  svg.addEventListener("focus", () => show(chosen));
  svg.addEventListener("keydown", event => {
    const number = { ArrowRight: chosen + 1, ArrowLeft: chosen - 1, Home: 0, End: points.length - 1 }[event.key];
    if (number === undefined) return;
    event.preventDefault();
    show(number);
  });
}
