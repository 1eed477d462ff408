// The matrix that the sliders describe, its triplet, and the gradient that everything is measured against.

import { Matrix, SingularValueDecomposition } from "ml-matrix";
import { doubled, float64 } from "./arithmetic.js";
import { gradient, solvers } from "./adjoint.js";
import { linear, transpose } from "./linear.js";
import { matrices } from "./matrices.js";

// The SVD of the library, in float64. The entry of v that is largest in modulus is positive, as in the book.
export function svd(A) {
  const { leftSingularVectors, diagonal, rightSingularVectors } = new SingularValueDecomposition(new Matrix(A), {
    autoTranspose: true,
  });
  const [U, V] = [leftSingularVectors.to2DArray(), rightSingularVectors.to2DArray()];
  const largest = V.reduce((a, row) => (Math.abs(row[0]) > Math.abs(a) ? row[0] : a), 0);
  const signed = (M) => M.map((row) => row.with(0, row[0] * (Math.sign(largest) || 1)));
  return { U: signed(U), S: diagonal, V: signed(V) };
}

export const singularValues = (A) => svd(A).S;

// U diag(s) Vᵀ with the first columns of two reflections I − 2xxᵀ/xᵀx for U and V
export function matrixOf(s) {
  const { outer, scaled, difference, diagonal, dot, mm } = linear(float64);
  const reflection = (x) => difference(diagonal(1, x.length), scaled(2 / dot(x, x), outer(x, x)));
  const U = reflection([1, 2, -1, 3, 2]).map((row) => row.slice(0, s.length).map((uij, j) => uij * s[j]));
  return mm(U, transpose(reflection([2, -1, 1, 3])));
}

// The cotangents: numbers without a meaning
export const XI = 0.7;
export const PHI = [0.3, -1.1, 0.8, 0.2, -0.6];
export const PSI = [-0.9, 0.4, 1.2, 0.5];

const relativeError = (found, truth) => {
  const { norm, minus } = linear(float64);
  return norm(minus(found.flat(), truth.flat())) / norm(truth.flat());
};

// All that is shown of one setting of the sliders. The triplet is rounded to the precision in which it is used.
export function study({ gap, tail, beta, scale, arithmetic }) {
  const { of } = arithmetic;
  const s = [1, 1 - gap, (1 - gap) * tail, (1 - gap) * tail ** 2].map((si) => scale * si);
  const A = matrixOf(s).map((row) => row.map(of));
  const { U, S, V } = svd(A);
  const column = (M) => M.map((row) => row[0]);
  const exact = { sigma: S[0], u: column(U), v: column(V), U, S, V };

  const spectra = Object.entries(matrices(float64)).map(([name, matrix]) => {
    const M = matrix(A, exact.sigma, exact.u, exact.v, beta);
    const values = singularValues(M);
    // what rounding leaves of a zero: P and Q are differences of matrices of size σ²
    const least = 64 * float64.epsilon * ("PQ".includes(name) ? exact.sigma ** 2 : values[0]);
    return { name, values: values.map((value) => (value > least ? value : 0)) };
  });

  const [xi, phi, psi] = [of(XI / scale), PHI.map(of), PSI.map(of)]; // a loss without units
  const truth = reference(A, exact, xi, phi, psi);
  const each = (M) => M.map((row) => row.map(of));
  const triplet = { sigma: of(S[0]), u: exact.u.map(of), v: exact.v.map(of), U: each(U), S: S.map(of), V: each(V) };
  const answers = Object.entries(solvers(arithmetic)).map(([name, solver]) => {
    const G = gradient(arithmetic, triplet, xi, solver(A, triplet, phi, psi, of(beta)));
    return { name, G, error: relativeError(G, truth) };
  });
  return { A, S, xi, phi, psi, truth, spectra, answers };
}

// The gradient with digits to spare: Newton's method for (u, v, σ), whose steps square the error, then "saddle".
function reference(A, start, xi, phi, psi) {
  const { of, value, add, sub, div } = doubled;
  const { dot, mv, plus, minus, times, solve } = linear(doubled);
  const { saddle } = matrices(doubled);
  const exact = (x) => x.map(of);
  const M = A.map(exact);
  let [sigma, u, v] = [of(start.sigma), exact(start.u), exact(start.v)];
  const half = (x) => div(sub(of(1), dot(x, x)), of(2));
  for (let turn = 0; turn < 3; turn++) {
    const residual = [
      ...minus(mv(M, v), times(sigma, u)),
      ...minus(mv(transpose(M), u), times(sigma, v)),
      half(u),
      half(v),
    ];
    const step = solve(saddle(M, sigma, u, v, of(1)), residual);
    u = plus(u, step.slice(0, u.length));
    v = plus(v, step.slice(u.length, u.length + v.length));
    sigma = add(sigma, div(add(...step.slice(-2)), of(2)));
  }
  const triplet = { sigma, u, v };
  const pair = solvers(doubled).saddle(M, triplet, exact(phi), exact(psi), sigma);
  return gradient(doubled, triplet, of(xi), pair).map((row) => row.map(value));
}
