// Elements by hand. Strings become text nodes; nothing is ever parsed as HTML, no attribute holds a script or a style.

/**
 * @param {string | null} space namespace, null for HTML
 * @param {string} tag with classes: "td.number.wide"
 * @param {Record<string, unknown>} attributes "on" holds listeners, "vars" custom properties, false and null are left out
 * @param {unknown[]} children
 */
function element(space, tag, attributes, children) {
  const [name, ...classes] = tag.split(".");
  const made = space ? document.createElementNS(space, name) : document.createElement(name);
  if (classes.length) made.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "on") for (const [event, listen] of Object.entries(value)) made.addEventListener(event, listen);
    else if (key === "vars") for (const [property, x] of Object.entries(value)) made.style.setProperty(property, String(x));
    else made.setAttribute(key, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

/** An HTML element. */
export function h(tag, attributes = {}, ...children) {
  return element(null, tag, attributes, children);
}

/** An SVG element. */
export function s(tag, attributes = {}, ...children) {
  return element("http://www.w3.org/2000/svg", tag, attributes, children);
}

/** A line from the middle to a value, to the right where it raises and to the left where it lowers. */
export function bar(value, largest, width = 84, towards = 1) {
  const half = width / 2;
  const length = largest > 0 ? Math.min(1, Math.abs(Number(value)) / largest) * half : 0;
  const x = value < 0 ? half - length : half;
  return s(
    "svg.bar",
    { width, height: 12, viewBox: `0 0 ${width} 12`, "aria-hidden": "true", focusable: "false" },
    s(value * towards < 0 ? "rect.lowers" : "rect.raises", { x, y: 2, width: Math.max(length, 0.5), height: 8 }),
    s("line.axis", { x1: half, x2: half, y1: 0, y2: 12 }),
  );
}
