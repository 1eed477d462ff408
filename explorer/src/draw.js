// What the two figures share: numbers as text, and SVG.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

export const power = (exponent) =>
  exponent === 0 ? "1" : "10" + [...String(exponent)].map((digit) => SUPERSCRIPT[digit]).join("");

// 0.1, 22.4, 2.41·10⁵, 10⁻⁵, ∞
export function short(x, digits = 3) {
  if (x === Infinity) return "∞";
  if (Number.isNaN(x)) return "none";
  if (x === 0) return "0";
  const [digit, exponent] = x.toExponential(digits - 1).split("e");
  if (-3 <= exponent && exponent < 4) return String(Number(x.toPrecision(digits))).replace("-", "−");
  if (Number(digit) === 1) return power(Number(exponent));
  return `${String(Number(digit)).replace("-", "−")}·${power(Number(exponent))}`;
}

export const list = (xs) => xs.map((x) => short(x, 4)).join(", ");

// An element of an SVG drawing, as text
export function tag(name, attributes, content = "") {
  const written = Object.entries(attributes).map(([key, value]) => `${key}="${value}"`);
  return `<${name} ${written.join(" ")}>${content}</${name}>`;
}

// A logarithmic axis from one power of ten to another, in per cent of the width; zero has a place left of it
export function axis(from, to, left, right) {
  const at = (x) => {
    if (x === 0) return `${left / 2}%`;
    const place = left + ((Math.log10(x) - from) / (to - from)) * (right - left);
    return `${Math.min(99, Math.max(left, place)).toFixed(3)}%`;
  };
  const ticks = (exponents) =>
    exponents
      .map((k) => tag("text", { x: at(10 ** k), y: 12, "data-tick": 10 ** k }, power(k)))
      .join("");
  return { at, ticks };
}
