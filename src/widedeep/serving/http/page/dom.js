// Elements made by hand: text goes in as text, so that no value of a request can become markup.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element; children are elements or texts, null ones are left out. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(made, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

/** Put options into a select: pairs of value and text. */
export function setOptions(select, options, chosen) {
  select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
  if (options.some(([value]) => value === chosen)) select.value = chosen;
}

/** A bar from 0 to `value`, where 1 is the full width; decoration beside a number. */
export function bar(value) {
  const width = 100 * Math.min(1, Math.max(0, value));
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", width: 100, height: 8 }),
    svg("rect", { width: width.toFixed(2), height: 8 }),
  );
}

/** A bar that leaves the middle to the right for above zero, to the left for below; |value| ≤ 1. */
export function signedBar(value) {
  const width = 50 * Math.min(1, Math.abs(value));
  return svg(
    "svg",
    { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
    svg("rect", { class: "track", x: 49.8, width: 0.4, height: 10 }),
    svg("rect", {
      class: value < 0 ? "minus" : null,
      x: (value < 0 ? 50 - width : 50).toFixed(2),
      y: 1,
      width: width.toFixed(2),
      height: 8,
    }),
  );
}

/** A probability with as many digits as tell it from its neighbours. */
export function shownScore(score) {
  if (!Number.isFinite(score)) return "–";
  if (score === 0) return "0";
  return Math.abs(score) < 0.001 ? score.toExponential(2) : score.toFixed(4);
}

/** A number with its sign, a true minus for a hyphen. */
export function signed(value, digits = 4) {
  const text = Math.abs(value).toFixed(digits);
  if (Number(text) === 0) return text;
  return (value < 0 ? "−" : "+") + text;
}

/** Seconds in the unit that people say them in. */
export function shownSeconds(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  return `${(seconds * 1e3).toFixed(seconds < 0.01 ? 2 : 0)} ms`;
}
