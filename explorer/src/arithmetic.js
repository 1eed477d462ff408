// Three arithmetics with the same operations. Everything that is solved here is solved with one of them.

// One rounding after each operation. In float32 this is what the hardware does: a sum, product, quotient or root of
// two float32 numbers, computed in float64 and rounded once more, is the correctly rounded float32 result.
const rounded = (round, epsilon) => ({
  epsilon,
  of: round,
  value: (a) => a,
  add: (a, b) => round(a + b),
  sub: (a, b) => round(a - b),
  mul: (a, b) => round(a * b),
  div: (a, b) => round(a / b),
  sqrt: (a) => round(Math.sqrt(a)),
});

export const float64 = rounded((a) => a, 2 ** -52);
export const float32 = rounded(Math.fround, 2 ** -23);

// Sums of two float64 numbers, about 32 digits: Dekker's "A floating-point technique for extending the available
// precision" (1971). The errors that are shown are measured against what this arithmetic finds.
function twoSum(a, b) {
  const s = a + b;
  const t = s - a;
  return [s, a - (s - t) + (b - t)];
}

function split(a) {
  const c = 134217729 * a; // 2^27 + 1
  const high = c - (c - a);
  return [high, a - high];
}

function twoProduct(a, b) {
  const p = a * b;
  const [ah, al] = split(a);
  const [bh, bl] = split(b);
  return [p, ah * bh - p + ah * bl + al * bh + al * bl];
}

function addDoubled([a, aLow], [b, bLow]) {
  const [s, e] = twoSum(a, b);
  return twoSum(s, e + aLow + bLow);
}

function mulDoubled([a, aLow], [b, bLow]) {
  const [p, e] = twoProduct(a, b);
  return twoSum(p, e + a * bLow + aLow * b);
}

const minus = ([a, aLow]) => [-a, -aLow];
const subDoubled = (a, b) => addDoubled(a, minus(b));

export const doubled = {
  epsilon: 2 ** -100,
  of: (a) => [a, 0],
  value: ([a, aLow]) => a + aLow,
  add: addDoubled,
  sub: subDoubled,
  mul: mulDoubled,
  // a float64 guess, corrected twice by the quotient of what is left over
  div: (a, b) => {
    let q = [a[0] / b[0], 0];
    for (let turn = 0; turn < 2; turn++) q = addDoubled(q, [subDoubled(a, mulDoubled(q, b))[0] / b[0], 0]);
    return q;
  },
  sqrt: (a) => {
    if (a[0] === 0) return [0, 0];
    let r = [Math.sqrt(a[0]), 0];
    for (let turn = 0; turn < 2; turn++) r = addDoubled(r, [subDoubled(a, mulDoubled(r, r))[0] / (2 * r[0]), 0]);
    return r;
  },
};
