// The top of the page: what was asked, what came out, and where it came from in a few lines.

import { h } from "./dom.js";
import { rowsOf } from "./parts.js";
import { percent, plural, signed, visible } from "./text.js";

const SHOWN = 60; // tokens at each end of a long prompt

/** The prompt as tokens, the prediction, and the model's other choices. */
export function head(view) {
  const { data } = view;
  const { target } = data;
  const words = target.texts.map(visible).join(" or ");
  return h(
    "header.top",
    {},
    h("h1", {}, "Where does ", h("span.token.target", {}, words), " come from?"),
    h("div.prompt", { role: "group", "aria-label": "the prompt, token by token, and what the model says next" }, tokens(view), arrow(), says(view)),
  );
}

function tokens({ data }) {
  const texts = data.tokens.texts;
  const all = h("ol.tokens", { "aria-label": "prompt" });
  const chip = (i) => h("li.token", { class: i === data.position ? "token here" : "token", "data-position": i }, visible(texts[i]), h("span.index", { "aria-label": `position ${i}` }, String(i)));
  const fill = (whole) => {
    const long = !whole && texts.length > 2 * SHOWN + 1;
    const first = long ? SHOWN : texts.length;
    const chips = Array.from({ length: first }, (_, i) => chip(i));
    if (long) {
      const between = texts.length - 2 * SHOWN;
      const more = h("button", { type: "button", on: { click: () => fill(true) } }, `… ${plural(between, "more token")} …`);
      chips.push(h("li", {}, more), ...Array.from({ length: SHOWN }, (_, i) => chip(texts.length - SHOWN + i)));
    }
    all.replaceChildren(...chips);
  };
  fill(false);
  return all;
}

function arrow() {
  return h("span.arrow", { "aria-hidden": "true" }, "→");
}

function says(view) {
  const { data, options } = view;
  const { target } = data;
  const rows = rowsOf(data.predictions);
  const against = target.against === "rest" ? "all other words" : target.against?.texts.map(visible).join(" or ");
  const largest = Math.max(...rows.map((row) => row.prob), 1e-12);
  const facts = [
    h("strong.probability", {}, percent(target.prob)),
    h("span", {}, ` log p ${signed(target.log_prob)} · `, target.rank === 1 ? "the model's first choice" : `choice ${target.rank} of the model`),
  ];
  if (against) facts.push(h("div", {}, `against ${against}: ${signed(target.value)} nats`));
  const line = (row) => {
    const mine = target.ids.includes(row.token_id);
    const token = h(mine ? "span.token.target" : "span.token", {}, visible(row.token));
    const asked = options.retarget && !mine;
    return h(
      "li",
      {},
      asked ? h("button.plain", { type: "button", title: "trace this word", on: { click: () => options.retarget(row.token_id) } }, token) : token,
      h("span.odds", { vars: { "--share": row.prob / largest }, "aria-hidden": "true" }),
      h("span.number", {}, percent(row.prob)),
    );
  };
  return h(
    "div.says",
    {},
    h("div", {}, h("span.token.target", {}, target.texts.map(visible).join(" or ")), " ", facts),
    h("details", {}, h("summary", {}, "what else the model would say"), h("ol.predictions", {}, rows.map(line))),
  );
}

/** The finding in a few lines, each part a button that pins it. */
export function brief(view) {
  const { data, parts } = view;
  const curve = rowsOf(data.tables.curve);
  const sums = { attn: 0, mlp: 0 };
  for (const row of rowsOf(data.tables.layers)) if (row.sublayer in sums) sums[row.sublayer] += Number(row[parts.column]);
  const name = data.target.measure === "log_prob" ? "log_prob" : "log_prob_diff";
  const what = data.target.measure === "log_prob" ? "log p" : "log p − log p(against)";
  const from = curve.length ? curve[0][name] : null;
  const lines = [
    h("li", {}, `Read from the last token's embedding alone, ${what} is ${signed(from)}. `, h("b.attention", {}, `Attention ${signed(sums.attn)}`), " and ", h("b.FFN", {}, `FFN ${signed(sums.mlp)}`), ` nats bring it to ${signed(data.target.value)}, layer by layer.`),
  ];
  const heads = rowsOf(data.tables.head_positions).slice(0, 3);
  const neurons = closest(view).slice(0, 3);
  if (heads.length) lines.push(h("li", {}, h("b.attention", {}, "Attention"), ", the strongest heads: ", heads.map((row, i) => [i ? "; " : "", view.named(row.label), ` reads `, h("span.token", {}, visible(row.token)), ` (${signed(row[parts.column])})`, writes(view, row.label)]), "."));
  if (neurons.length) lines.push(h("li", {}, h("b.FFN", {}, "FFN"), ", neurons that also matter through later layers: ", neurons.map((row, i) => [i ? "; " : "", view.named(row.label), ` (${signed(row[parts.column])})`, writes(view, row.label)]), "."));
  const first = neurons.find((row) => data.activations[row.label]?.head_position);
  if (first) {
    const table = data.activations[first.label].head_position;
    const causes = rowsOf(table).filter((row) => row.label !== "bias" && row.label !== "others").slice(0, 3);
    const sum = rowsOf(table).reduce((total, row) => total + Number(row.score), 0);
    lines.push(h("li", {}, view.named(first.label), " was switched on by ", causes.map((row, i) => [i ? ", " : "", view.named(row.label), ` (${signed(row.score)})`]), ` … which add up to its coefficient, ${signed(sum)}.`));
  }
  return h("section.brief", { "aria-label": "in short" }, h("ul", {}, lines));
}

/** FFN neurons at the top, those first that also matter through later layers. */
export function closest({ data }) {
  const rows = rowsOf(data.tables.ffn_neurons).slice(0, 10);
  return rows.map((row) => [row, Number(data.total_effects[row.label] ?? 0)]).sort((a, b) => b[1] - a[1]).map(([row]) => row);
}

function writes(view, id) {
  const words = view.words(id)?.writes.slice(0, 3);
  return words?.length ? [" and writes ", words.map((word, i) => [i ? " " : "", h("span.word", {}, word)])] : "";
}
