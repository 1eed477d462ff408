// Linear algebra in one of the arithmetics. Matrices are arrays of rows.

export const transpose = (M) => M[0].map((_, j) => M.map((row) => row[j]));
export const onTop = (...blocks) => blocks.flat();
export const beside = (...blocks) => blocks[0].map((_, i) => blocks.flatMap((block) => block[i]));

export function linear({ of, value, add, sub, mul, div, sqrt }) {
  const zero = of(0);
  const zeros = (rows, columns) => Array.from({ length: rows }, () => Array(columns).fill(zero));
  const diagonal = (s, size) => zeros(size, size).map((row, i) => row.with(i, s));

  const dot = (x, y) => x.reduce((sum, xi, i) => add(sum, mul(xi, y[i])), zero);
  const norm = (x) => sqrt(dot(x, x));
  const mv = (M, x) => M.map((row) => dot(row, x));
  const mm = (M, N) => ((T) => M.map((row) => mv(T, row)))(transpose(N));
  const plus = (x, y) => x.map((xi, i) => add(xi, y[i]));
  const minus = (x, y) => x.map((xi, i) => sub(xi, y[i]));
  const times = (c, x) => x.map((xi) => mul(c, xi));
  const over = (x, c) => x.map((xi) => div(xi, c));
  const outer = (x, y) => x.map((xi) => times(xi, y));
  const project = (u, x) => minus(x, times(dot(u, x), u));
  const sum = (M, N) => M.map((row, i) => plus(row, N[i]));
  const difference = (M, N) => M.map((row, i) => minus(row, N[i]));
  const scaled = (c, M) => M.map((row) => times(c, row));

  // y of R y = b for an upper triangle
  function backward(R, b) {
    const y = [...b];
    for (let i = b.length - 1; i >= 0; i--) {
      for (let j = i + 1; j < b.length; j++) y[i] = sub(y[i], mul(R[i][j], y[j]));
      y[i] = div(y[i], R[i][i]);
    }
    return y;
  }

  // y of L y = b for a lower triangle: the same, read from the other end
  function forward(L, b) {
    const turned = L.map((row) => [...row].reverse()).reverse();
    return backward(turned, [...b].reverse()).reverse();
  }

  // M x = b by LU with partial pivoting
  function solve(M, b) {
    const rows = M.map((row, i) => [...row, b[i]]);
    const n = b.length;
    for (let k = 0; k < n; k++) {
      let pivot = k;
      for (let i = k + 1; i < n; i++) {
        if (Math.abs(value(rows[i][k])) > Math.abs(value(rows[pivot][k]))) pivot = i;
      }
      [rows[k], rows[pivot]] = [rows[pivot], rows[k]];
      for (let i = k + 1; i < n; i++) {
        const factor = div(rows[i][k], rows[k][k]);
        for (let j = k + 1; j <= n; j++) rows[i][j] = sub(rows[i][j], mul(factor, rows[k][j]));
      }
    }
    return backward(rows, rows.map((row) => row[n]));
  }

  // M = Q R by Householder reflections x − τ w (wᵀx), which are kept for Q
  function qr(M) {
    const R = M.map((row) => [...row]);
    const reflections = R[0].map((_, k) => {
      const column = R.slice(k).map((row) => row[k]);
      const length = norm(column);
      const w = [value(column[0]) > 0 ? add(column[0], length) : sub(column[0], length), ...column.slice(1)];
      const tau = value(length) === 0 ? zero : div(of(2), dot(w, w));
      const reflect = (x) => {
        const c = mul(tau, dot(w, x.slice(k)));
        return x.map((xi, i) => (i < k ? xi : sub(xi, mul(c, w[i - k]))));
      };
      for (let j = k; j < R[0].length; j++) {
        reflect(R.map((row) => row[j])).forEach((x, i) => (R[i][j] = x));
      }
      return reflect;
    });
    return { R: R.slice(0, R[0].length), reflections };
  }

  // Q x for the thin Q of M = Q R
  const orthonormal = ({ reflections }, rows, x) =>
    reflections.reduceRight((y, reflect) => reflect(y), [...x, ...Array(rows - x.length).fill(zero)]);

  // The x that minimises ‖M x − b‖, of least norm if M is wide, as LAPACK's gels finds it: M must have full rank
  function leastSquares(M, b) {
    if (M.length >= M[0].length) {
      const { R, reflections } = qr(M);
      const c = reflections.reduce((x, reflect) => reflect(x), b);
      return backward(R, c.slice(0, M[0].length));
    }
    const factors = qr(transpose(M));
    return orthonormal(factors, M[0].length, forward(transpose(factors.R), b));
  }

  return {
    zeros, diagonal, dot, norm, mv, mm, plus, minus, times, over, outer, project, sum, difference, scaled, solve,
    qr, orthonormal, leastSquares,
  };
}
