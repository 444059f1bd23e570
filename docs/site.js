// What the theme leaves out for people who use a screen reader, or keys alone.
function mend() {
  // The name of a level of the navigation; the theme's own label holds only an icon if the level has a page.
  for (const level of document.querySelectorAll("nav[aria-labelledby]")) {
    const label = document.getElementById(level.getAttribute("aria-labelledby"));
    if (label?.textContent.trim()) continue;
    level.setAttribute("aria-label", level.querySelector(".md-nav__title").textContent.trim());
    level.removeAttribute("aria-labelledby");
  }
  // A block's copy button isn't a place to navigate to.
  for (const buttons of document.querySelectorAll(".md-code__nav:not([role])")) buttons.setAttribute("role", "none");
  // A table that overflows can be scrolled by keys once it has the focus, as the theme's blocks of code can.
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  }
}
new MutationObserver(mend).observe(document.body, { childList: true, subtree: true });
addEventListener("resize", mend);
mend();
