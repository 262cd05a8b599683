// The ranked tables: filter, threshold, order by any column.

import { bar, h } from "./dom.js";
import { rowsOf } from "./parts.js";
import { count, plural, signed, visible } from "./text.js";

const TABS = [
  ["ffn_neurons", "FFN neurons", "Each adds one stored vector, times its coefficient in this run."],
  ["attn_neurons", "attention neurons", "One index of a head at the token that it reads."],
  ["head_positions", "heads at a token", "What a head copies from one token of the prompt."],
  ["heads", "heads", "A head over all tokens that it reads."],
  ["layers", "sublayers", "Whole attention and FFN outputs."],
  ["effects", "anywhere, by total effect", "FFN neurons at every token, by what they do through all later layers (rule “gradient”: it foresees what taking out that one part does)."],
];

export function tables(view) {
  const { data, state } = view;
  const there = TABS.filter(([name]) => rowsOf(data.tables[name]).length);
  const tab = () => there.find(([name]) => name === state.values.tab) ?? there[0];
  const list = h("div.tabs", { role: "tablist", "aria-label": "tables" });
  const help = h("p.help");
  const filter = h("input", { type: "search", "aria-label": "filter rows by part, token or word", placeholder: "filter: part, token, word" });
  const slider = h("input", { type: "range", min: 0, max: 100, step: 1, "aria-label": "smallest size shown" });
  const least = h("output");
  const shownCount = h("span.count", { role: "status" });
  const body = h("div.scroll", { role: "region", tabindex: 0, "aria-label": "table, scrolls sideways" });
  const panel = h("div", { role: "tabpanel", id: view.id("panel"), "aria-labelledby": view.id(`tab-${there[0]?.[0]}`) }, help, h("div.controls", {}, filter, h("label", {}, "size ≥ ", least, slider), shownCount), body);

  const drawTabs = () => {
    const [current] = tab();
    list.replaceChildren(
      ...there.map(([name, title]) =>
        h("button", { type: "button", role: "tab", id: view.id(`tab-${name}`), "aria-selected": String(name === current), "aria-controls": view.id("panel"), tabindex: name === current ? 0 : -1, on: { click: () => choose(name) } }, title),
      ),
    );
    panel.setAttribute("aria-labelledby", view.id(`tab-${current}`));
  };
  const choose = (name) => {
    state.set({ tab: name, sort: "", min: 0 });
    view.root.querySelector(`#${view.id(`tab-${name}`)}`)?.focus();
  };
  list.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose(there[(there.indexOf(tab()) + by + there.length) % there.length][0]);
  });
  filter.addEventListener("input", () => state.set({ filter: filter.value }));
  slider.addEventListener("input", () => state.set({ min: Number(slider.value) }));

  const draw = () => {
    const [name, , explained] = tab();
    const all = rowsFor(view, name);
    const largest = Math.max(1e-9, ...all.map((row) => Math.abs(row.value)));
    const { filter: words, min, sort } = state.values;
    if (filter.value !== words) filter.value = words;
    slider.value = String(min);
    const limit = (largest * min * min) / 10000; // most rows are small
    least.value = limit.toFixed(limit < 0.1 ? 3 : 2);
    const sought = words.toLowerCase().split(/\s+/).filter(Boolean);
    const reading = view.reading();
    let rows = all.filter((row) => Math.abs(row.value) >= limit);
    if (sought.length) rows = rows.filter((row) => sought.every((word) => view.parts.searched(row.id, reading).includes(word)));
    rows = ordered(rows, sort);
    help.replaceChildren(explained);
    shownCount.replaceChildren(`${count(rows.length)} of ${plural(all.length, "row")}`);
    body.replaceChildren(drawn(view, name, rows, all, largest));
  };
  state.watch((changed) => {
    if (changed.some((one) => ["tab", "sort", "filter", "min", "words"].includes(one))) {
      if (changed.includes("tab")) drawTabs();
      view.keepingFocus(body, draw);
    }
    view.mark(body);
  });
  drawTabs();
  draw();
  return h("section.card.tables", { "aria-label": "tables" }, h("h2", {}, "Part by part"), list, panel);
}

/** Rows as the tables show them: canonical id, its value, and everything there is to order by. */
function rowsFor(view, name) {
  const { data, parts } = view;
  return rowsOf(data.tables[name]).map((row) => {
    const id = parts.idOf(row.label);
    const part = parts.get(id);
    const value = Number(name === "effects" ? row.total_effect : row[parts.column]);
    return { id, value, token: row.token, coefficient: row.coefficient, prob: row.prob_increase, total: name === "effects" ? row.direct_effect : part.total, measured: part.measured, sink: name === "effects" && row.sink };
  });
}

function columnsOf(name, rows, measure) {
  const has = (key) => rows.some((row) => row[key] !== undefined && row[key] !== null);
  const what = measure === "log_prob" ? "log p" : "log p − log p(against)";
  return [
    ["id", "part", "the part; click pins it"],
    has("token") && ["token", name === "effects" ? "at" : "reads", "the token that it reads or stands at"],
    has("coefficient") && ["coefficient", "coefficient", "how strongly, and with which sign, its row is added"],
    name === "effects" ? ["value", "total effect", `what it does to ${what} through all later layers, in nats`] : ["value", `Δ ${measure === "log_prob" ? "log p" : "difference"}`, `what adding it does at once to ${what}, in nats`],
    has("prob") && ["prob", "Δ p", "what adding it does at once to the probability"],
    has("total") && (name === "effects" ? ["total", "direct effect", "what it does to the output with nothing in between"] : ["total", "total effect", "what it does through all later layers too, in nats; foresees an ablation"]),
    has("measured") && ["measured", "lost without it", "measured by running the model again without it, in nats"],
  ].filter(Boolean);
}

function drawn(view, name, rows, all, largest) {
  const { state, data } = view;
  const columns = columnsOf(name, all, data.target.measure);
  const [by, direction] = state.values.sort.split(":");
  const heading = ([key, title, hint]) => {
    const sorted = key === by ? (direction === "asc" ? "ascending" : "descending") : "none";
    const next = key === by && direction === "desc" ? "asc" : "desc";
    return h("th", { scope: "col", "aria-sort": sorted }, h("button.plain", { type: "button", title: hint, "data-key": `sort-${key}`, on: { click: () => state.set({ sort: `${key}:${next}` }) } }, title, h("span", { "aria-hidden": "true" }, sorted === "none" ? "" : sorted === "ascending" ? " ▲" : " ▼")));
  };
  const cell = (row, [key]) => {
    if (key === "id") return h("th", { scope: "row" }, view.named(row.id), row.sink ? h("span.help", { title: "attention parks here: predicted effects are not to be relied on" }, " sink") : "");
    if (key === "token") return h("td", {}, row.token === "" || row.token === null ? "" : h("span.token", {}, visible(row.token)));
    if (key === "value") return h("td.number", {}, bar(row.value, largest), " ", signed(row.value));
    return h("td.number", {}, row[key] === undefined || row[key] === null ? "" : signed(row[key]));
  };
  const words = (row) => {
    const found = view.words(row.id);
    return h("td.words", {}, found ? found.writes.map((word, i) => [i ? " " : "", h("span.word", {}, word)]) : "");
  };
  return h(
    "table.rows",
    {},
    h("caption.unseen", {}, name.replaceAll("_", " ")),
    h("thead", {}, h("tr", {}, columns.map(heading), h("th", { scope: "col" }, "writes"))),
    h("tbody", {}, rows.map((row) => h("tr", { "data-part": row.id }, columns.map((column) => cell(row, column)), words(row)))),
  );
}

function ordered(rows, sort) {
  const [key, direction] = sort.split(":");
  if (!key || !["id", "token", "coefficient", "value", "prob", "total", "measured"].includes(key)) return rows;
  const turn = direction === "asc" ? 1 : -1;
  const of = (row) => row[key] ?? (typeof rows[0]?.[key] === "string" ? "" : 0);
  return [...rows].sort((a, b) => turn * (typeof of(a) === "string" ? String(of(a)).localeCompare(String(of(b)), "en", { numeric: true }) : Number(of(a)) - Number(of(b))));
}
