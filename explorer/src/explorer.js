// The page's two figures. Without this script the page shows still pictures; here they make room.

import "./explorer.css";
import { ellipse } from "./ellipse.js";
import { spectrum } from "./spectrum.js";

function start() {
  for (const [name, figure] of Object.entries({ spectrum, ellipse })) {
    const root = document.getElementById(`explorer-${name}-figure`);
    if (root) figure(root);
  }
  document.documentElement.classList.add("explorer-runs");
}

if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
else start();
