// The first figure: sliders; the singular values and condition number of every matrix of the book; the error of every
// attempt. What is drawn carries its number in data-value, to all digits.

import { float32, float64 } from "./arithmetic.js";
import { axis, list, short, tag } from "./draw.js";
import { study } from "./problem.js";

const power10 = (x) => 10 ** x;
const SLIDERS = [
  { name: "gap", label: "relative gap", symbol: "1 − σ₂/σ₁", min: -5, max: -0.1, step: 0.1, start: -1, to: power10 },
  { name: "tail", label: "tail", symbol: "σ₃/σ₂ = σ₄/σ₃", min: 0, max: 1, step: 0.05, start: 0.5, to: (x) => x },
  { name: "beta", label: "border weight", symbol: "β", min: -2, max: 2, step: 0.1, start: 0, to: power10 },
  { name: "scale", label: "scale of A", symbol: "σ₁", min: -2, max: 2, step: 0.1, start: 0, to: power10 },
];
const PRECISIONS = { float64, float32 };
const FORMULAS = {
  K: "[σI, −A; −Aᵀ, σI]",
  bordered: "[K; Wᵀ]",
  saddle: "[K, W; Wᵀ, 0]",
  misdeflated: "K − σzzᵀ",
  deflated: "K + σwwᵀ",
  P: "σ²I − AAᵀ",
  Q: "σ²I − AᵀA",
  "deflated-P": "P + σ²uuᵀ",
  "deflated-Q": "Q + σ²vvᵀ",
  stack: "[σI; Aᵀ]",
  middle: "Q₁ᵀQ₁ − Q₂ᵀQ₂ + ttᵀ",
  "notebook-stack": "[Aᵀ; σ²I]",
};

const values = axis(-9, 0, 9, 97);
const errors = axis(-17, 2, 1, 97);

const slider = ({ name, label, symbol, min, max, step, start }) => `
  <div class="explorer-control">
    <label for="explorer-${name}">${label} <span class="explorer-symbol">${symbol}</span></label>
    <output for="explorer-${name}"></output>
    <input type="range" id="explorer-${name}" min="${min}" max="${max}" step="${step}" value="${start}">
  </div>`;

const radio = (name, i) => `
  <label><input type="radio" name="explorer-precision" value="${name}" ${i === 0 ? "checked" : ""}> ${name}</label>`;

const SKELETON = `
  <form class="explorer-controls" autocomplete="off">
    ${SLIDERS.map(slider).join("")}
    <fieldset class="explorer-control">
      <legend>precision</legend>${Object.keys(PRECISIONS).map(radio).join("")}
    </fieldset>
    <button type="reset">back to the start</button>
  </form>
  <p class="explorer-live" role="status"></p>
  <table class="explorer-table" id="explorer-spectra">
    <caption>The singular values of each matrix, the largest at the right: the length of a line is the condition
      number κ</caption>
    <thead><tr><th scope="col">matrix</th><th scope="col" class="explorer-axis"><svg aria-hidden="true">
      ${tag("text", { x: values.at(0), y: 12, "data-tick": 0 }, "0")}${values.ticks([-8, -6, -4, -2, 0])}
    </svg><span class="explorer-hidden">singular values over the largest</span></th><th scope="col">κ</th></tr></thead>
    <tbody></tbody>
  </table>
  <table class="explorer-table" id="explorer-errors">
    <caption>The relative error of the gradient; the lines are the rounding unit ε and what the question costs,
      ε over the gap</caption>
    <thead><tr><th scope="col">way</th><th scope="col" class="explorer-axis"><svg aria-hidden="true">
      ${errors.ticks([-16, -8, 0])}
    </svg><span class="explorer-hidden">error</span></th><th scope="col">error</th></tr></thead>
    <tbody></tbody>
  </table>
  <details class="explorer-numbers">
    <summary>The numbers: A, the cotangents ξ, φ, ψ, and two of the gradients</summary>
    <div></div>
  </details>`;

function spectrumRow({ name, values: s }) {
  const kappa = s[0] / s.at(-1);
  const [first, last] = [values.at(s.at(-1) / s[0]), values.at(1)];
  const dots = s.map((si) => tag("circle", { cx: values.at(si / s[0]), cy: "50%", r: 4, "data-value": si }));
  const line = tag("line", { x1: first, x2: last, y1: "50%", y2: "50%" });
  return `
    <tr data-name="${name}">
      <th scope="row">${name}<span class="explorer-symbol">${FORMULAS[name]}</span></th>
      <td class="explorer-strip">${tag("svg", { role: "img", "aria-label": list(s) }, line + dots.join(""))}</td>
      <td data-value="${kappa}">${short(kappa)}</td>
    </tr>`;
}

function errorRow({ name, error }, epsilon, gap) {
  const marks = [epsilon, epsilon / gap].map((x) =>
    tag("line", { class: "explorer-mark", x1: errors.at(x), x2: errors.at(x), y1: 0, y2: "100%", "data-value": x }),
  );
  const found = Number.isFinite(error);
  const place = { cy: "50%", r: 4.5, "data-value": error };
  const drawn = found
    ? tag("line", { x1: errors.at(1e-17), x2: errors.at(error), y1: "50%", y2: "50%" }) +
      tag("circle", { cx: errors.at(error), ...place })
    : "";
  return `
    <tr data-name="${name}">
      <th scope="row">${name}</th>
      <td class="explorer-strip"><svg aria-hidden="true">${marks.join("")}${drawn}</svg></td>
      <td data-value="${error}">${found ? short(error, 1) : "none"}</td>
    </tr>`;
}

const numbers = (name, M) => `
  <table class="explorer-matrix" data-name="${name}">
    <caption>${name}</caption>
    ${M.map((row) => `<tr>${row.map((x) => `<td data-value="${x}">${short(x, 4)}</td>`).join("")}</tr>`).join("")}
  </table>`;

export function spectrum(root) {
  root.innerHTML = SKELETON;
  const form = root.querySelector("form");
  const find = (selector) => root.querySelector(selector);

  function draw() {
    const setting = {};
    for (const { name, to } of SLIDERS) {
      const input = find(`#explorer-${name}`);
      setting[name] = to(Number(input.value));
      const output = find(`[for="explorer-${name}"] ~ output`);
      output.value = short(setting[name]);
      output.dataset.value = setting[name];
      input.setAttribute("aria-valuetext", output.value);
    }
    const precision = form.elements["explorer-precision"].value;
    const arithmetic = PRECISIONS[precision];
    const { A, S, xi, phi, psi, spectra, answers } = study({ ...setting, arithmetic });
    const gap = (S[0] - S[1]) / S[0];

    find("#explorer-spectra tbody").innerHTML = spectra.map(spectrumRow).join("");
    find("#explorer-errors tbody").innerHTML = answers
      .map((answer) => errorRow(answer, arithmetic.epsilon, gap))
      .join("");
    const gradients = answers.filter(({ name }) => name === "saddle" || name === "spectral");
    find(".explorer-numbers div").innerHTML = [
      numbers("A", A),
      numbers("ξ", [[xi]]),
      numbers("φ", [phi]),
      numbers("ψ", [psi]),
      ...gradients.map(({ name, G }) => numbers(`G by ${name}`, G)),
    ].join("");
    const kappa = Object.fromEntries(spectra.map(({ name, values: s }) => [name, short(s[0] / s.at(-1))]));
    const error = Object.fromEntries(answers.map(({ name, error: e }) => [name, short(e, 1)]));
    find(".explorer-live").textContent =
      `Singular values of A: ${list(S)}. κ of bordered ${kappa.bordered}, saddle ${kappa.saddle}, ` +
      `deflated ${kappa.deflated}. Error in ${precision}: direct ${error.direct}, bordered ${error.bordered}, ` +
      `saddle ${error.saddle}.`;
  }
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(draw)); // after the reset, not before
  draw();
}
