// What a page of the book needs from the reader's browser.

// A formula that is wider than its box, as on a phone, becomes smaller, down to where it can still be read; what is wider
// than that scrolls. A formula in a fold has no width before the fold is opened, so each is watched.
const LEAST = 0.6;
const watch = new ResizeObserver((boxes) => {
  for (const { target: box } of boxes) {
    const formula = box.querySelector("mjx-container");
    if (!formula || !box.clientWidth) continue;
    const size = (formula.dataset.size ??= formula.style.fontSize || "100%");
    formula.style.fontSize = size;
    const share = formula.clientWidth / formula.scrollWidth;
    if (share < 1) formula.style.fontSize = `calc(${size} * ${Math.max(LEAST, 0.99 * share)})`;
  }
});
document.querySelectorAll("article div.math").forEach((box) => watch.observe(box));

// A table that scrolls sideways can be reached by the keyboard, as the theme sees to for code.
const reach = new ResizeObserver((boxes) => {
  for (const { target: box } of boxes) box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
});
document.querySelectorAll(".pst-scrollable-table-container").forEach((box) => reach.observe(box));

// The search button and the folds of code bear a name for screen readers that is not what is written on them, so that who
// says what is written reaches nothing (WCAG 2.5.3). What is written is a good name.
for (const named of document.querySelectorAll(".search-button-field, details.hide > summary"))
  named.removeAttribute("aria-label");
