// Numbers and tokens as text. Every text of a trace goes through `visible` and ends in a text node.

const SIGNS = { " ": "␣", "\n": "⏎", "\r": "↵", "\t": "⇥", "\u001b": "␛", "\u00a0": "⍽" };
const SHAPELESS = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Cn}\p{Zl}\p{Zp}]/u;
const LONGEST = 60;

/**
 * A token with its white space as signs, and what has no shape of its own by its code.
 * @param {unknown} text
 * @returns {string}
 */
export function visible(text) {
  return shaped(text, LONGEST);
}

function shaped(text, longest) {
  const shown = [];
  for (const c of String(text ?? "")) {
    if (shown.length >= longest) {
      shown.push("…");
      break;
    }
    const code = c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    shown.push(SIGNS[c] ?? (SHAPELESS.test(c) ? `‹U+${code}›` : c));
  }
  return shown.join("");
}

/** A sentence or a name: the same, with its spaces as they are. @param {unknown} text @returns {string} */
export function plain(text) {
  return shaped(text, 600).replaceAll("␣", " ");
}

/**
 * A number with its sign, and as many digits as it is large.
 * @param {number | string | null | undefined} value
 * @returns {string}
 */
export function signed(value) {
  if (value === null || value === undefined) return "–";
  const x = Number(value);
  if (!Number.isFinite(x)) return x > 0 ? "+∞" : "−∞";
  const size = Math.abs(x);
  if (size === 0) return "0";
  const digits = size >= 10 ? 1 : size >= 0.095 ? 2 : size >= 0.00095 ? 4 : null;
  const text = digits === null ? size.toExponential(0) : size.toFixed(digits);
  return (x < 0 ? "−" : "+") + text;
}

/** @param {number} p @returns {string} */
export function percent(p) {
  const x = 100 * Number(p);
  if (!Number.isFinite(x)) return "–";
  return x >= 99.95 || x === 0 ? `${x.toFixed(1)} %` : x >= 0.1 ? `${x.toPrecision(3)} %` : `${x.toExponential(1)} %`;
}

/** @param {number} n @returns {string} */
export function count(n) {
  return Number(n).toLocaleString("en");
}

/** @param {number} n @param {string} one @returns {string} */
export function plural(n, one) {
  return `${count(n)} ${one}${n === 1 ? "" : "s"}`;
}
