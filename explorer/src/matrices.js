// The matrices of the book, in one of the arithmetics: the names and formulas of svdgrad/matrices.py.

import { beside, linear, onTop, transpose } from "./linear.js";

export function matrices(arithmetic) {
  const { of, mul, sqrt } = arithmetic;
  const { zeros, diagonal, mv, mm, times, over, norm, outer, sum, difference, scaled, qr, orthonormal } =
    linear(arithmetic);
  const negative = (M) => scaled(of(-1), M);
  const square = (s) => mul(s, s);

  const K = (A, sigma) =>
    onTop(
      beside(diagonal(sigma, A.length), negative(A)),
      beside(negative(transpose(A)), diagonal(sigma, A[0].length)),
    );
  // Wᵀ, the two constraints as rows
  const border = (u, v, beta) => [
    [...times(beta, u), ...v.map(() => of(0))],
    [...u.map(() => of(0)), ...times(beta, v)],
  ];
  const bordered = (A, sigma, u, v, beta) => onTop(K(A, sigma), border(u, v, beta));
  const saddle = (A, sigma, u, v, beta) => {
    const W = border(u, v, beta);
    return onTop(beside(K(A, sigma), transpose(W)), beside(W, zeros(2, 2)));
  };
  const misdeflated = (A, sigma, u, v) => {
    const z = [...u, ...times(of(-1), v)];
    return difference(K(A, sigma), scaled(sigma, outer(z, z)));
  };
  const deflated = (A, sigma, u, v) => {
    const w = over([...u, ...v], sqrt(of(2)));
    return sum(K(A, sigma), scaled(sigma, outer(w, w)));
  };
  const P = (A, sigma) => difference(diagonal(square(sigma), A.length), mm(A, transpose(A)));
  const Q = (A, sigma) => P(transpose(A), sigma);
  const deflatedP = (A, sigma, u) => sum(P(A, sigma), scaled(square(sigma), outer(u, u)));
  const stack = (A, sigma) => onTop(diagonal(sigma, A.length), transpose(A));
  const notebookStack = (A, sigma) => onTop(transpose(A), diagonal(square(sigma), A.length));

  // Q₁ᵀQ₁ − Q₂ᵀQ₂ + ttᵀ with [σI; Aᵀ] = [Q₁; Q₂] R and t = Ru/‖Ru‖
  const middle = (A, sigma, u) => {
    const m = A.length;
    const M = stack(A, sigma);
    const factors = qr(M);
    const Q = transpose(diagonal(of(1), m).map((e) => orthonormal(factors, M.length, e)));
    const gram = (rows) => mm(transpose(rows), rows);
    const t = ((r) => over(r, norm(r)))(mv(factors.R, u));
    return sum(difference(gram(Q.slice(0, m)), gram(Q.slice(m))), outer(t, t));
  };

  return {
    K,
    bordered,
    saddle,
    misdeflated,
    deflated,
    P,
    Q,
    "deflated-P": deflatedP,
    "deflated-Q": (A, sigma, u, v) => deflatedP(transpose(A), sigma, v),
    stack,
    middle,
    "notebook-stack": notebookStack,
  };
}
