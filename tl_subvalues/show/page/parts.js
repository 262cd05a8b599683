// What is known of each part of the model, under one label wherever it stands.

import { visible } from "./text.js";

const KINDS = [
  ["sublayer", /^(\d+)_(\w+)_out$/],
  ["attention neuron", /^L(\d+)H(\d+)D(\d+)(?:@(\d+))?(?:>(\d+))?$/],
  ["head at a source position", /^L(\d+)H(\d+)@(\d+)(?:>(\d+))?$/],
  ["head", /^L(\d+)H(\d+)$/],
  ["FFN neuron", /^L(\d+)(?:E(\d+))?N(\d+)(?:@(\d+))?$/],
  ["embedding", /^embed@(\d+)$/],
];

/** A packed table as rows. @returns {Record<string, any>[]} */
export function rowsOf(table) {
  if (!table) return [];
  const names = Object.keys(table.columns);
  const n = Math.max(0, ...names.map((name) => table.columns[name].values.length));
  return Array.from({ length: n }, (_, i) => Object.fromEntries(names.map((name) => [name, table.columns[name].values[i]])));
}

/** A label as the tables have it: at the trace's own position it does not say where. */
export function canonical(label, position) {
  const text = String(label);
  const here = new RegExp(`(?:@>|>)${position}$`);
  if (here.test(text)) return text.replace(here, "");
  return /^(?:L\d+(?:E\d+)?N\d+|\d+_\w+_out)@\d+$/.test(text) ? text.replace(new RegExp(`@${position}$`), "") : text;
}

/** "attention", "FFN" or "other", by which parts are coloured. */
export function family(label) {
  if (/^L\d+H|_attn_out/.test(label)) return "attention";
  return /^L\d+(E\d+)?N|_mlp_out/.test(label) ? "FFN" : "other";
}

/** Everything that is known of the parts of a trace. */
export class Parts {
  constructor(data) {
    this.data = data;
    this.position = data.position;
    this.tokens = data.tokens.texts;
    this.column = data.target.measure === "log_prob" ? "log_prob_increase" : "log_prob_diff_increase";
    this.parts = new Map();
    for (const name of ["layers", "heads", "head_positions", "attn_neurons", "ffn_neurons"]) {
      for (const row of rowsOf(data.tables[name])) this.learn(row.label, { ...row, increase: row[this.column], token: undefined });
    }
    for (const row of rowsOf(data.tables.head_grid)) this.learn(row.label, { increase: row.increase });
    for (const row of rowsOf(data.tables.effects)) this.learn(row.label, { total: row.total_effect, coefficient: row.coefficient, sink: row.sink });
    for (const [label, total] of Object.entries(data.total_effects)) this.learn(label, { total });
    for (const [label, measured] of Object.entries(data.ablations)) this.learn(label, { measured });
    this.nodes = data.graph ? rowsOf(data.graph.nodes) : [];
    this.edges = data.graph ? rowsOf(data.graph.edges) : [];
    for (const row of this.nodes) {
      if (row.kind !== "target") this.learn(row.label, { coefficient: row.coefficient, frozen: row.total_effect, sink: row.sink, node: true });
    }
    for (const edge of this.edges) {
      edge.source = canonical(edge.source, this.position);
      edge.target = canonical(edge.target, this.position);
    }
  }

  learn(label, found) {
    const id = canonical(label, this.position);
    const part = this.parts.get(id) ?? this.described(id);
    for (const [key, value] of Object.entries(found)) if (value !== undefined && value !== null && part[key] === undefined) part[key] = value;
    this.parts.set(id, part);
  }

  /** What a model at hand says of a part besides: a fragment of a document. */
  add(found) {
    Object.assign(this.data.activations, found.activations);
    for (const [by, words] of Object.entries(found.words)) Object.assign((this.data.words[by] ??= {}), words);
    for (const [label, own] of Object.entries(found.parts)) this.learn(label, own);
    for (const [label, total] of Object.entries(found.total_effects)) this.learn(label, { total });
    for (const [label, measured] of Object.entries(found.ablations)) this.learn(label, { measured });
  }

  /** Whether something is missing of a part that a model would tell. */
  lacks(id) {
    const part = this.get(id);
    if (part.kind === "embedding") return false;
    const words = Object.values(this.data.words).some((one) => Object.hasOwn(one, id) || Object.hasOwn(one, `${id}@${this.position}`));
    const scored = !/neuron/.test(part.kind) || part.at !== undefined || Object.hasOwn(this.data.activations, id);
    return part.measured === undefined || !words || !scored;
  }

  /** What a label says by itself. */
  described(id) {
    const [kind, match] = KINDS.map(([name, pattern]) => [name, pattern.exec(id)]).find(([, found]) => found) ?? ["part", null];
    const part = { id, kind, family: family(id) };
    if (kind === "head at a source position") part.reads = Number(match[3]);
    if (kind === "attention neuron" && match[4] !== undefined) part.reads = Number(match[4]);
    if (kind === "FFN neuron" && match[4] !== undefined) part.at = Number(match[4]);
    if (kind === "embedding") part.at = Number(match[1]);
    return part;
  }

  get(id) {
    return this.parts.get(id) ?? this.described(id);
  }

  has(id) {
    return this.parts.has(id);
  }

  token(position) {
    return visible(this.tokens[position]);
  }

  /** In words: "FFN neuron at ␣France". */
  title(id) {
    const part = this.get(id);
    const where = part.reads !== undefined ? `, reads ${this.token(part.reads)}` : part.at !== undefined ? ` at ${this.token(part.at)}` : "";
    return part.kind + where;
  }

  /**
   * The words that a part writes and lowers in this run: a neuron's row turned round where its coefficient is negative.
   * @returns {{writes: string[], lowers: string[]} | null}
   */
  words(id, reading) {
    const all = this.data.words[reading] ?? {};
    const name = [id, `${id}@${this.position}`].find((one) => Object.hasOwn(all, one));
    if (name === undefined) return null;
    const own = all[name];
    const part = this.get(id);
    const turned = reading !== "prob_increase" && /neuron/.test(part.kind) && part.coefficient < 0;
    const [writes, lowers] = turned ? [own.bottom, own.top] : [own.top, own.bottom];
    return { writes: writes.texts.map(visible), lowers: lowers.texts.map(visible) };
  }

  /** Everything that a filter looks through. */
  searched(id, reading) {
    const part = this.get(id);
    const words = this.words(id, reading);
    const read = part.reads ?? part.at;
    return [id, part.kind, read === undefined ? "" : this.token(read), ...(words?.writes ?? [])].join(" ").toLowerCase();
  }
}
