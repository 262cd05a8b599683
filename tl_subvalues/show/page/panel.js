// The side panel: what is known of the pinned parts.

import { bar, h } from "./dom.js";
import { rowsOf } from "./parts.js";
import { count, percent, plain, signed, visible } from "./text.js";

const FACTS = [
  ["increase", "adds at once (Δ)", "how much adding this one vector, where the model adds it, raises the target's log-probability, in nats"],
  ["total", "total effect", "the same followed through all later layers, by the gradient, in nats; foresees what taking it out does"],
  ["measured", "measured: lost without it", "the model run again with this part set to zero at the last token: how much the target loses, in nats"],
  ["frozen", "of the output (frozen)", "its share of what the output consists of, with patterns and gates held"],
  ["coefficient", "coefficient", "how strongly, and with which sign, its stored row is added"],
];

export function panel(view) {
  const { state } = view;
  const made = h("div.cards");
  const draw = () => {
    const pins = state.pins;
    const cards = pins.map((id) => card(view, id));
    const hint = h("p.help", {}, "Click a part anywhere, and what is known of it appears here. Several can be compared; the address keeps them.");
    made.replaceChildren(...(pins.length ? [] : [hint]), ...(pins.length > 1 ? [comparison(view, pins)] : []), ...cards.reverse());
    view.mark(made);
  };
  state.watch((changed) => changed.some((one) => one === "pins" || one === "words") && view.keepingFocus(made, draw));
  view.redrawPanel = () => view.keepingFocus(made, draw);
  draw();
  return h("aside.panel", { "aria-label": "pinned parts" }, h("h2", {}, "Pinned"), anyPart(view), made);
}

/** Where a model is at hand: any part of it, whether the tables have it or not. */
function anyPart({ options, state }) {
  if (!options.ask) return null;
  const label = h("input", { type: "text", placeholder: "L24N1005", spellcheck: "false", autocomplete: "off", maxlength: 60 });
  const pin = (event) => {
    event.preventDefault();
    const id = label.value.trim();
    if (id && !state.pins.includes(id)) state.toggle(id);
    label.value = "";
  };
  label.addEventListener("keydown", (event) => event.key === "Enter" && pin(event)); // in JupyterLab, Enter submits no form
  return h("form.controls", { on: { submit: pin } }, h("label", {}, "any part, by its label ", label), h("button", { type: "submit" }, "pin"));
}

function comparison(view, pins) {
  const facts = FACTS.filter(([key]) => pins.some((id) => view.parts.get(id)[key] !== undefined));
  const number = (id, key) => (view.parts.get(id)[key] === undefined ? "–" : signed(view.parts.get(id)[key]));
  return h(
    "div.scroll.compare",
    { role: "region", tabindex: 0, "aria-label": "comparison, scrolls sideways" },
    h(
      "table",
      {},
      h("caption", {}, "side by side"),
      h("thead", {}, h("tr", {}, h("td"), pins.map((id) => h("th", { scope: "col", "data-part": id }, plain(id))))),
      h("tbody", {}, facts.map(([key, title, hint]) => h("tr", {}, h("th", { scope: "row", title: hint }, title), pins.map((id) => h("td.number", {}, number(id, key)))))),
    ),
  );
}

function card(view, id) {
  const { parts, state } = view;
  const part = parts.get(id);
  const close = h("button.close", { type: "button", "aria-label": `unpin ${id}`, "data-key": `close-${id}`, on: { click: () => state.toggle(id) } }, "✕");
  const facts = FACTS.filter(([key]) => part[key] !== undefined).map(([key, title, hint]) => [h("dt", { title: hint }, title), h("dd.number", {}, signed(part[key]))]);
  return h(
    "article",
    { "data-part": id, "aria-label": `pinned ${id}` },
    h("h3", {}, h(`span.${part.family}`, {}, plain(id)), close),
    h("p.kind", {}, parts.title(id), part.sink ? "; attention parks here: predicted effects are not to be relied on" : ""),
    facts.length ? h("dl", {}, facts) : null,
    words(view, id),
    activation(view, id),
    flows(view, id),
    live(view, id),
  );
}

function words(view, id) {
  const found = view.words(id);
  if (!found) return h("p.missing", {}, "No words of it are kept here: ", h("code", {}, `trace.vocabulary("${plain(id)}")`), " asks the model.");
  const side = (title, list, kind) => [h("dt", {}, title), h("dd", {}, list.map((word, i) => [i ? " " : "", h(`span.word.${kind}`, {}, word)]))];
  return h("dl.vocabulary", {}, side("writes", found.writes, "up"), side("lowers", found.lowers, "down"));
}

function activation(view, id) {
  const tables = Object.hasOwn(view.data.activations, id) ? view.data.activations[id] : undefined;
  const part = view.parts.get(id);
  if (!/neuron/.test(part.kind) || part.at !== undefined) return null; // scores are of the trace's own position
  const table = tables?.head_position ?? tables?.sublayer;
  if (!table) return h("p.missing", {}, "What switched it on is kept for the first neurons alone: ", h("code", {}, `trace.activations("${plain(id)}")`), " asks the model.");
  const rows = rowsOf(table);
  const sum = rows.reduce((total, row) => total + Number(row.score), 0);
  const shown = rows.filter((row) => row.label !== "bias" && row.label !== "others").slice(0, 8);
  const shownSum = shown.reduce((total, row) => total + Number(row.score), 0);
  const bias = rows.filter((row) => row.label === "bias").reduce((total, row) => total + Number(row.score), 0);
  const others = rows.length - shown.length - rows.filter((row) => row.label === "bias" || row.label === "others").length + Number(table.attrs.others ?? 0);
  const largest = Math.max(1e-9, ...shown.map((row) => Math.abs(row.score)));
  const line = (name, value) => h("tr", {}, h("th", { scope: "row" }, name), h("td.number", {}, bar(value, largest, 64, Math.sign(sum) || 1), " ", signed(value)));
  const read = (label) => {
    const at = view.parts.get(view.parts.idOf(label)).reads;
    return at === undefined ? "" : [" ", h("span.token", {}, view.parts.token(at))];
  };
  return h(
    "table.scores",
    {},
    h("caption", {}, `switched on by (adds up to its ${plain(table.attrs.sums_to ?? "coefficient")}, ${signed(sum)})`),
    h("tbody", {}, shown.map((row) => line([view.named(row.label), read(row.label)], row.score)), line(`${count(others)} others`, sum - shownSum - bias), line("bias", bias)),
  );
}

/** What flows into a node of the graph, and where it goes. */
function flows(view, id) {
  const { edges } = view.parts;
  const into = edges.filter((edge) => edge.target === id);
  const from = edges.filter((edge) => edge.source === id).sort((a, b) => Math.abs(b.weight) - Math.abs(a.weight));
  if (!into.length && !from.length) return null;
  const total = into.reduce((sum, edge) => sum + Math.abs(edge.weight), 0);
  const named = (label) => (label === "target" ? h("span.token.target", {}, visible(view.data.target.texts[0])) : label === "others" ? "all other neurons" : label === "bias" ? "bias" : view.named(label));
  const item = (edge, label, share) => h("li", {}, named(label), ` ${signed(edge.weight)}`, share ? ` (${percent(share)})` : "", (edge.through ?? []).length ? h("span.through", {}, ` through ${edge.through.slice(0, 2).map((one) => plain(one.head)).join(", ")}`) : "");
  const first = into.filter((edge) => !["others", "bias"].includes(edge.source)).slice(0, 5);
  const rest = into.filter((edge) => ["others", "bias"].includes(edge.source));
  return h(
    "div.flows",
    {},
    into.length ? [h("h4", {}, "fed by, in the graph"), h("ul", {}, [...first, ...rest].map((edge) => item(edge, edge.source, total ? Math.abs(edge.weight) / total : 0)))] : null,
    from.length ? [h("h4", {}, "feeds, in the graph"), h("ul", {}, from.slice(0, 5).map((edge) => item(edge, edge.target, 0)))] : null,
  );
}

/** Where a model is at hand: what comes of asking it for what is not kept. */
function live(view, id) {
  const said = view.asked.get(id);
  if (!said) return null;
  const waiting = said.startsWith("asking");
  const again = h("button", { type: "button", "data-key": `ask-${id}`, on: { click: () => view.askFor(id) } }, "ask again");
  return h("p.missing", { role: "status" }, plain(said), waiting ? null : [" ", again]);
}
