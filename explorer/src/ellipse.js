// The second figure: a 2×2 matrix turns the unit circle into an ellipse. Its columns can be dragged; arrows show u and
// v, and where they go as one entry of the matrix grows.

import { float64 } from "./arithmetic.js";
import { solvers } from "./adjoint.js";
import { short, tag } from "./draw.js";
import { linear, transpose } from "./linear.js";
import { svd } from "./problem.js";

const REACH = 2.6; // half the width of a drawing
const ENTRIES = ["11", "12", "21", "22"];
const SUBSCRIPT = { 1: "₁", 2: "₂" };
const nameOf = (entry) => "a" + [...entry].map((digit) => SUBSCRIPT[digit]).join("");
const START = { 11: 1.5, 12: 0.35, 21: -0.4, 22: 1 };

const { mv, dot, minus, times, project, norm } = linear(float64);

// The triplet of A and its derivative as the entry at row i, column j grows: du and dv solve the adjoint system for
// φ = dA v and ψ = dAᵀu, since K is symmetric
function derivative(A, i, j) {
  const { U, S, V } = svd(A);
  const [[u, left], [v, right]] = [transpose(U), transpose(V)];
  const dA = [0, 1].map((row) => [0, 1].map((column) => (row === i && column === j ? 1 : 0)));
  const [dAv, dAtu] = [mv(dA, v), mv(transpose(dA), u)];
  const triplet = { sigma: S[0], u, v };
  const tied = S[0] - S[1] <= 1e-9 * S[0]; // then u and v are not functions of A
  const [du, dv] = tied
    ? [u, v].map((x) => x.map(() => NaN))
    : solvers(float64).saddle(A, triplet, project(u, dAv), project(v, dAtu), S[0]);
  return { S, u, v, left, right, du, dv, dsigma: dot(u, dAv), tied };
}

const point = ([x, y]) => `${x.toFixed(4)},${(-y).toFixed(4)}`; // up is positive
const line = (name, from, to) => {
  const [[x1, y1], [x2, y2]] = [from, to];
  return tag("line", { class: name, x1, y1: -y1, x2, y2: -y2, "data-name": name });
};
function arrow(name, from, step, label, beside = step) {
  const length = norm(step);
  if (!(length > 1e-9)) return "";
  const along = times(1 / length, step);
  const across = [-along[1], along[0]];
  const tip = from.map((x, k) => x + step[k]);
  const head = Math.min(0.16, 0.7 * length);
  const back = (side) => tip.map((x, k) => x + head * (0.45 * side * across[k] - along[k]));
  const place = tip.map((x, k) => x + 0.23 * (beside[k] / norm(beside)));
  return (
    line(name, from, tip) +
    tag("polygon", { class: name, points: [tip, back(1), back(-1)].map(point).join(" ") }) +
    tag("text", { class: name, x: place[0], y: -place[1], dy: "0.35em" }, label)
  );
}

// An arrow for a derivative is cut where it leaves the drawing
const LONGEST = 1.4;
const cut = (step) => (norm(step) > LONGEST ? times(LONGEST / norm(step), step) : step);

// A vector and its derivative, the name of the one on the side away from the other
function arrows(name, vector, rate) {
  const away = norm(rate) > 1e-9 ? times(-1, rate) : vector;
  return (
    arrow(`explorer-${name}`, [0, 0], vector, name, away) + arrow(`explorer-d${name}`, vector, cut(rate), `d${name}`)
  );
}

const drawing = (name, label) => `
  <figure><svg id="explorer-${name}" role="img" viewBox="${-REACH} ${-REACH} ${2 * REACH} ${2 * REACH}"
    aria-label="${label}"></svg><figcaption>${label}</figcaption></figure>`;

const slider = (entry) => `
  <div class="explorer-control">
    <label for="explorer-a${entry}">entry ${nameOf(entry)}</label>
    <output for="explorer-a${entry}"></output>
    <input type="range" id="explorer-a${entry}" min="-2" max="2" step="0.01" value="${START[entry]}">
  </div>`;

const radio = (entry, i) => `
  <label><input type="radio" name="explorer-moving" value="${entry}" ${i === 2 ? "checked" : ""}>
    ${nameOf(entry)}</label>`;

const SKELETON = `
  <form class="explorer-controls" autocomplete="off">
    ${ENTRIES.map(slider).join("")}
    <fieldset class="explorer-control"><legend>the entry that grows</legend>${ENTRIES.map(radio).join("")}</fieldset>
    <button type="reset">back to the start</button>
  </form>
  <div class="explorer-drawings">
    ${drawing("circle", "before A: the unit circle, v and dv")}
    ${drawing("ellipse", "after A: the ellipse, u and du; drag the two columns of A")}
  </div>
  <p class="explorer-live" role="status"></p>
  <table class="explorer-matrix" id="explorer-triplet">
    <caption>The triplet and its derivative</caption>
    <tbody></tbody>
  </table>`;

export function ellipse(root) {
  root.innerHTML = SKELETON;
  const form = root.querySelector("form");
  const find = (selector) => root.querySelector(selector);
  const input = (entry) => find(`#explorer-a${entry}`);

  function draw() {
    const [a11, a12, a21, a22] = ENTRIES.map((entry) => {
      const output = find(`[for="explorer-a${entry}"] ~ output`);
      output.value = short(Number(input(entry).value));
      return Number(input(entry).value);
    });
    const A = [
      [a11, a12],
      [a21, a22],
    ];
    const moving = form.elements["explorer-moving"].value;
    const { S, u, v, left, right, du, dv, dsigma, tied } = derivative(A, moving[0] - 1, moving[1] - 1);

    const turn = Array.from({ length: 121 }, (_, k) => [Math.cos((k * Math.PI) / 60), Math.sin((k * Math.PI) / 60)]);
    const curve = (name, points) => tag("polyline", { class: name, points: points.map(point).join(" ") });
    const axes = line("explorer-grid", [-REACH, 0], [REACH, 0]) + line("explorer-grid", [0, -REACH], [0, REACH]);
    find("#explorer-circle").innerHTML =
      axes +
      curve("explorer-curve", turn) +
      (tied ? "" : line("explorer-minor", [0, 0], right) + arrows("v", v, dv));

    const image = turn.map((x) => mv(A, x));
    const handle = (column) => {
      const [x, y] = A.map((row) => row[column]);
      const place = { cx: x, cy: -y, r: 0.13, class: "explorer-handle", "data-column": column + 1 };
      const beyond = 1 + 0.36 / Math.hypot(x, y, 0.01);
      const label = { x: beyond * x, y: -beyond * y, dy: "0.35em" };
      const name = tag("text", label, `Ae${SUBSCRIPT[column + 1]}`);
      return line("explorer-column", [0, 0], [x, y]) + tag("circle", place) + name;
    };
    find("#explorer-ellipse").innerHTML =
      axes +
      curve("explorer-before", turn) +
      curve("explorer-curve", image) +
      (tied
        ? ""
        : line("explorer-minor", [0, 0], times(S[1], left)) +
          line("explorer-major", [0, 0], times(S[0], u)) +
          arrows("u", u, du)) +
      handle(0) +
      handle(1);

    const row = (name, xs) =>
      `<tr data-name="${name}"><th scope="row">${name}</th>${xs
        .map((x) => `<td data-value="${x}">${short(x, 4)}</td>`)
        .join("")}</tr>`;
    find("#explorer-triplet tbody").innerHTML =
      row("σ₁, σ₂", S) + row("u", u) + row("v", v) + row("du", du) + row("dv", dv) + row("dσ", [dsigma]);
    find(".explorer-live").textContent = tied
      ? `σ₁ = σ₂ = ${short(S[0])}: the ellipse is a circle, and u and v are not determined.`
      : `σ₁ = ${short(S[0])}, σ₂ = ${short(S[1])}. As ${nameOf(moving)} grows, σ₁ changes at the rate ` +
        `${short(dsigma)}, u turns at the rate ${short(norm(du))}, v at ${short(norm(dv))}.`;
  }

  // Dragging a column sets its two sliders
  const svg = find("#explorer-ellipse");
  svg.addEventListener("pointerdown", (event) => {
    const { column } = event.target.dataset;
    if (!column) return;
    event.preventDefault();
    const box = svg.getBoundingClientRect();
    const follow = ({ clientX, clientY }) => {
      const x = ((clientX - box.left) / box.width) * 2 * REACH - REACH;
      const y = REACH - ((clientY - box.top) / box.height) * 2 * REACH;
      input(`1${column}`).value = x;
      input(`2${column}`).value = y;
      draw();
    };
    const stop = () => {
      removeEventListener("pointermove", follow);
      removeEventListener("pointerup", stop);
      removeEventListener("pointercancel", stop);
    };
    addEventListener("pointermove", follow);
    addEventListener("pointerup", stop);
    addEventListener("pointercancel", stop);
  });
  form.addEventListener("input", draw);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(draw));
  draw();
}
