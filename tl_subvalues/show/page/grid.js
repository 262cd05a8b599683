// Layers × source positions: the head that does most in each place, beside what attention and FFN add in each layer.

import { bar, h } from "./dom.js";
import { rowsOf } from "./parts.js";
import { count, signed, visible } from "./text.js";

const COLUMNS = 32;

/** The grid, the last layer on top. */
export function grid(view) {
  const { data, parts } = view;
  const cells = rowsOf(data.tables.head_grid);
  const layers = rowsOf(data.tables.layers);
  const shown = columns(cells, data);
  const place = new Map(cells.map((cell) => [`${cell.layer} ${cell.position}`, cell]));
  const largest = Math.max(1e-9, ...cells.map((cell) => Math.abs(cell.increase)));
  const most = Math.max(1e-9, ...layers.map((row) => Math.abs(row[parts.column])));
  const numbers = [...new Set(layers.map((row) => row.layer))].sort((a, b) => b - a);
  const bestNeuron = new Map();
  for (const row of rowsOf(data.tables.ffn_neurons)) if (!bestNeuron.has(row.layer)) bestNeuron.set(row.layer, row);
  const sublayerCell = (layer, kind) => {
    const row = layers.find((one) => one.layer === layer && (kind === "mlp" ? one.sublayer === "mlp" : one.sublayer !== "mlp"));
    if (!row) return h("td", { role: "gridcell" });
    const value = row[parts.column];
    return h("td.sublayer", { role: "gridcell", tabindex: -1, "data-part": row.label, "aria-label": `${row.label}, ${signed(value)} nats` }, bar(value, most, 64), h("span.number", {}, signed(value)));
  };
  const neuronCell = (layer) => {
    const row = bestNeuron.get(layer);
    if (!row) return h("td", { role: "gridcell" });
    return h("td.neuron", { role: "gridcell", tabindex: -1, "data-part": row.label, "aria-label": `${row.label.replace(/^L\d+/, "")} ${signed(row[parts.column])} nats, neuron of layer ${layer}` }, h("span.FFN", {}, row.label.replace(/^L\d+/, "")), ` ${signed(row[parts.column])}`);
  };
  const headCell = (layer, position) => {
    const cell = place.get(`${layer} ${position}`);
    if (!cell) return h("td.empty", { role: "gridcell", tabindex: -1, "aria-label": `layer ${layer}, ${parts.token(position)}: nothing among the strongest` });
    const strength = Math.abs(cell.increase) / largest;
    const text = strength > 0.12 ? cell.label.replace(/^L\d+|@\d+$/g, "") + (cell.increase < 0 ? "−" : "") : "";
    return h(
      cell.increase < 0 ? "td.cell.lowers" : "td.cell.raises",
      {
        role: "gridcell",
        tabindex: -1,
        "data-part": cell.label,
        vars: { "--strength": strength.toFixed(3) },
        "aria-label": `${text} layer ${layer}, ${parts.token(position)}: ${cell.label}, ${signed(cell.increase)} nats`.trim(),
      },
      text,
    );
  };
  const head = h(
    "tr",
    { role: "row" },
    h("th", { scope: "col", role: "columnheader" }, "layer"),
    shown.map((position) => h("th.token-head", { scope: "col", role: "columnheader", "data-position": position }, h("span.token", {}, visible(data.tokens.texts[position])))),
    h("th", { scope: "col", role: "columnheader" }, "attention, all"),
    h("th", { scope: "col", role: "columnheader" }, "FFN, all"),
    h("th", { scope: "col", role: "columnheader" }, "top neuron"),
  );
  const body = numbers.map((layer) => h("tr", { role: "row" }, h("th", { scope: "row", role: "rowheader" }, String(layer)), shown.map((position) => headCell(layer, position)), sublayerCell(layer, "attn"), sublayerCell(layer, "mlp"), neuronCell(layer)));
  const made = h("table.grid", { role: "grid", "aria-label": "layers by source positions; arrow keys move, Enter pins" }, h("thead", { role: "rowgroup" }, head), h("tbody", { role: "rowgroup" }, body));
  roving(made);
  const all = data.tokens.texts.length;
  return h(
    "section.card",
    { "aria-label": "layers by source positions" },
    h("h2", {}, "Layer by layer"),
    h("p.help", {}, "Columns are the tokens that attention reads, rows are layers; the last is on top. A square is the head that does most there: ", h("span.swatch.raises", {}), " raises, ", h("span.swatch.lowers", {}), " lowers the target (−). On the right, what attention and FFN add in all, and the strongest neuron of a layer where one is among those listed below. Hover to see what a part is, click to pin it.", shown.length < all ? ` Shown are ${shown.length} of ${count(all)} positions, those that matter most.` : ""),
    h("div.scroll", { tabindex: 0, role: "region", "aria-label": "grid, scrolls sideways" }, made),
  );
}

/** The positions that are shown: all of a short prompt, else the first, the last, and the strongest. */
function columns(cells, data) {
  const n = data.tokens.texts.length;
  const seen = [...new Set(cells.map((cell) => cell.position))];
  if (n <= COLUMNS) return Array.from({ length: n }, (_, i) => i);
  const strength = new Map();
  for (const cell of cells) strength.set(cell.position, Math.max(strength.get(cell.position) ?? 0, Math.abs(cell.increase)));
  const best = seen.sort((a, b) => strength.get(b) - strength.get(a)).slice(0, COLUMNS - 2);
  return [...new Set([0, ...best, data.position])].sort((a, b) => a - b);
}

/** One cell of a table is in the order of Tab; arrow keys, Home and End go to the others. */
function roving(table) {
  const rows = () => [...table.querySelectorAll("tbody tr")].map((row) => [...row.querySelectorAll("td")]);
  const first = table.querySelector("td[data-part]") ?? table.querySelector("td");
  first?.setAttribute("tabindex", "0");
  const go = (cell) => {
    if (!cell) return;
    for (const one of table.querySelectorAll('td[tabindex="0"]')) one.setAttribute("tabindex", "-1");
    cell.setAttribute("tabindex", "0");
    cell.focus();
  };
  table.addEventListener("keydown", (event) => {
    const all = rows();
    const y = all.findIndex((row) => row.includes(event.target));
    if (y < 0) return;
    const x = all[y].indexOf(event.target);
    const to = { ArrowUp: [y - 1, x], ArrowDown: [y + 1, x], ArrowLeft: [y, x - 1], ArrowRight: [y, x + 1], Home: [y, 0], End: [y, all[y].length - 1] }[event.key];
    if (!to) return;
    event.preventDefault();
    go(all[to[0]]?.[to[1]]);
  });
  table.addEventListener("focusin", (event) => {
    if (!event.target.matches("td")) return;
    for (const one of table.querySelectorAll('td[tabindex="0"]')) if (one !== event.target) one.setAttribute("tabindex", "-1");
    event.target.setAttribute("tabindex", "0");
  });
}
