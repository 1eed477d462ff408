// The adjoint system K [p; q] = [φ; ψ] with p ⟂ u, q ⟂ v, solved in one of the arithmetics: the six attempts of the
// notebook, and "saddle" and "spectral", by the formulas of the files of the same names in svdgrad/adjoint.

import { linear, transpose } from "./linear.js";
import { matrices } from "./matrices.js";

// name -> solver(A, {sigma, u, v, U, S, V}, phi, psi, beta) -> [p, q]
export function solvers(arithmetic) {
  const { of, value, add, sub, mul, div } = arithmetic;
  const { mv, plus, minus, times, over, project, solve, leastSquares } = linear(arithmetic);
  const { K, P, Q, bordered, saddle, "notebook-stack": notebookStack } = matrices(arithmetic);
  const zeros = (x) => x.map(() => of(0));

  // y that minimises ‖Aᵀy − b‖² + ‖σ²y‖²
  const onStack = (A, sigma, b) => leastSquares(notebookStack(A, sigma), [...b, ...A.map(() => of(0))]);

  const attempts = {
    direct: (A, { sigma }, phi, psi) => parts(A, leastSquares(K(A, sigma), [...phi, ...psi])),
    bordered: (A, { sigma, u, v }, phi, psi, beta) =>
      parts(A, leastSquares(transpose(bordered(A, sigma, u, v, beta)), [...phi, ...psi])),
    "block-inversion": (A, { sigma }, phi, psi) => {
      const [left, right] = [P(A, sigma), Q(A, sigma)];
      return [
        plus(leastSquares(left, times(sigma, phi)), leastSquares(left, mv(A, psi))),
        plus(leastSquares(right, mv(transpose(A), phi)), leastSquares(right, times(sigma, psi))),
      ];
    },
    mixed: (A, { sigma }, phi, psi) => [
      plus(solve(P(A, sigma), times(sigma, phi)), onStack(A, sigma, times(of(-1), psi))),
      plus(onStack(transpose(A), sigma, times(of(-1), phi)), solve(Q(A, sigma), times(sigma, psi))),
    ],
    "backward-substitution": (A, { sigma }, phi, psi) => {
      const T = transpose(A);
      const [minusPhi, minusPsi] = [times(of(-1), phi), times(of(-1), psi)];
      const [mu, w] = [times(sigma, minusPhi), minusPhi].map((b) => onStack(T, sigma, b));
      const [y, nu] = [minusPsi, times(sigma, minusPsi)].map((b) => onStack(A, sigma, b));
      return [plus(leastSquares(T, mu), y), plus(w, leastSquares(A, nu))];
    },
    "forward-substitution": (A, { sigma }, phi, psi) => {
      const T = transpose(A);
      const [mu, nu] = [leastSquares(A, times(sigma, phi)), leastSquares(T, times(sigma, psi))];
      const [p, y] = [mu, psi].map((b) => onStack(A, sigma, times(of(-1), b)));
      const [w, q] = [phi, nu].map((b) => onStack(T, sigma, times(of(-1), b)));
      return [plus(p, y), plus(w, q)];
    },
  };

  // (p, q) from [K, W; Wᵀ, 0] [p; q; λ; μ] = [φ; ψ; 0; 0] by LU. A and β in units of σ, φ and ψ of size one.
  function saddlePoint(A, { sigma, u, v }, phi, psi, beta) {
    const size = [...phi, ...psi].reduce((a, b) => (Math.abs(value(b)) > Math.abs(value(a)) ? b : a));
    if (value(size) === 0) return [phi, psi];
    const J = saddle(A.map((row) => over(row, sigma)), of(1), u, v, div(beta, sigma));
    const c = [...project(u, over(phi, size)), ...project(v, over(psi, size)), of(0), of(0)];
    const unit = div(size, sigma);
    return parts(A, solve(J, c)).map((x) => times(unit, x));
  }

  // p = U (a + Sb)/d + (I − UUᵀ)φ and q = V (Sa + b)/d + (I − VVᵀ)ψ in units of σ, with a = Uᵀφ, b = Vᵀψ and
  // d = (1 − S)(1 + S), without the first triplet, which is σ itself
  function spectral(A, { sigma, u, v, U, S, V }, phi, psi) {
    const [f, g] = [project(u, over(phi, sigma)), project(v, over(psi, sigma))];
    const [a, b, s] = [mv(transpose(U), f), mv(transpose(V), g), over(S, sigma)];
    const d = s.map((si) => mul(sub(of(1), si), add(of(1), si)));
    const each = (first, second) =>
      d.map((di, i) => (i === 0 ? of(0) : div(add(first[i], mul(s[i], second[i])), di)));
    const [x, y] = [each(a, b), each(b, a)];
    const whole = (M) => M.length === M[0].length; // then nothing is out of reach but rounding
    const p = whole(U) ? mv(U, x) : plus(mv(U, minus(x, a)), f);
    const q = whole(V) ? mv(V, y) : plus(mv(V, minus(y, b)), g);
    return [p, q];
  }

  const parts = (A, x) => [x.slice(0, A.length), x.slice(A.length, A.length + A[0].length)];

  // p and q are projected after the solve, by the attempts as by "saddle"
  const projected = (solver) => (A, triplet, ...rest) => {
    const [p, q] = solver(A, triplet, ...rest);
    return [project(triplet.u, p), project(triplet.v, q)];
  };
  const after = Object.entries({ ...attempts, saddle: saddlePoint }).map(([name, f]) => [name, projected(f)]);
  return { ...Object.fromEntries(after), spectral };
}

// G = (ξu + p)vᵀ + uqᵀ, the gradient of the loss ξσ + φᵀu + ψᵀv
export function gradient(arithmetic, { u, v }, xi, [p, q]) {
  const { plus, times, outer, sum } = linear(arithmetic);
  return sum(outer(plus(times(xi, u), p), v), outer(u, q));
}
