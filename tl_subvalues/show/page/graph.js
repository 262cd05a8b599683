// The graph: neurons by layer and position, the embeddings below and the target on top; lines are what flows.

import { h, s } from "./dom.js";
import { count, percent, plain, signed, visible } from "./text.js";

const ROW = 17;
const MOST_EMBEDDINGS = 24;

export function graph(view) {
  const { data, parts, state } = view;
  if (!data.graph) return h("section.card", { hidden: true });
  const { nodes, edges } = parts;
  const placed = places(view, nodes);
  const inflow = new Map();
  for (const edge of edges) inflow.set(edge.target, (inflow.get(edge.target) ?? 0) + Math.abs(edge.weight));
  const drawn = edges
    .map((edge) => ({ ...edge, share: Math.abs(edge.weight) / Math.max(inflow.get(edge.target), 1e-12) }))
    .filter((edge) => placed.at.has(edge.source) && placed.at.has(edge.target) && edge.share >= 0.002)
    .sort((a, b) => a.share - b.share);
  const lines = drawn.map((edge) => line(edge, placed.at));
  const largest = Math.max(1e-9, ...nodes.filter((node) => node.kind === "neuron").map((node) => Math.abs(node.total_effect)));
  const points = [...placed.at].map(([id, spot]) => point(view, id, spot, largest));
  const picture = s(
    "svg.graph",
    { viewBox: `0 0 ${placed.width} ${placed.height}`, width: placed.width, vars: { "--least": `${Math.round(0.75 * placed.width)}px` }, role: "group", "aria-label": "graph of neurons; arrow keys move from node to node, Enter pins" },
    placed.rules.map(([y, text]) => [s("line.rule", { x1: 40, x2: placed.width, y1: y, y2: y }), s("text", { x: 34, y: y + 4, "text-anchor": "end" }, text)]),
    placed.names.map(([x, text]) => s("text.token-name", { x, y: placed.height - 6, "text-anchor": "middle" }, text)),
    s("g.edges", {}, lines),
    s("g.nodes", {}, points),
  );
  const slider = h("input", { type: "range", min: 0, max: 20, step: 1, "aria-label": "smallest share of an edge that is drawn" });
  const said = h("output");
  const draw = () => {
    const { share } = state.values;
    slider.value = String(Math.round(100 * share));
    said.value = `${Math.round(100 * share)} %`;
    const pinned = new Set(state.pins);
    drawn.forEach((edge, i) => {
      const own = pinned.has(edge.source) || pinned.has(edge.target);
      lines[i].toggleAttribute("hidden", edge.share < share && !(own && edge.share >= 0.01));
      lines[i].classList.toggle("own", own);
    });
    view.mark(picture);
  };
  slider.addEventListener("input", () => state.set({ share: Number(slider.value) / 100 }));
  const light = (id) => drawn.forEach((edge, i) => lines[i].classList.toggle("lit", id !== null && (edge.source === id || edge.target === id)));
  for (const event of ["pointerover", "focusin"]) picture.addEventListener(event, ({ target }) => light(target.closest("[data-part],[data-node]")?.dataset.node ?? null));
  picture.addEventListener("pointerleave", () => light(null));
  picture.addEventListener("pointerover", (event) => {
    const i = lines.indexOf(event.target);
    if (i >= 0) view.tip(spoken(drawn[i], view), event);
  });
  walking(picture, placed.at);
  state.watch(draw);
  draw();
  return h(
    "section.card",
    { "aria-label": "graph" },
    h("h2", {}, "What fed what"),
    h("p.help", {}, `The ${count(nodes.filter((node) => node.kind === "neuron").length)} FFN neurons with the largest effects (●; hollow where attention parks, whose predicted effects are not to be relied on), the tokens' embeddings below (■) and the target on top (◆). A line is as wide as its share of what flows into its upper end; `, h("span.swatch.raises", {}), " raises, ", h("span.swatch.lowers", {}), " lowers it. What comes from all other neurons is not drawn: it stands beside a pinned node."),
    h("div.controls", {}, h("label", {}, "edges of at least ", said, slider)),
    h("div.scroll", { role: "region", tabindex: 0, "aria-label": "graph, scrolls sideways" }, picture),
  );
}

/** Where each node stands, by its canonical label. */
function places(view, nodes) {
  const { data, parts } = view;
  const neurons = nodes.filter((node) => node.kind === "neuron");
  const occupied = new Set([data.position, ...neurons.map((node) => node.position)]);
  const embeddings = nodes.filter((node) => node.kind === "embedding").sort((a, b) => Math.abs(b.total_effect) - Math.abs(a.total_effect));
  const kept = embeddings.filter((node, i) => i < MOST_EMBEDDINGS || occupied.has(node.position));
  const positions = [...new Set([...kept, ...neurons].map((node) => node.position).concat(data.position))].sort((a, b) => a - b);
  const crowd = new Map();
  const beside = new Map();
  for (const node of neurons) {
    const place = `${node.layer} ${node.position}`;
    beside.set(place, (beside.get(place) ?? 0) + 1);
    crowd.set(node.position, Math.max(crowd.get(node.position) ?? 1, beside.get(place)));
  }
  const middle = new Map();
  let x = 48;
  for (const position of positions) {
    const width = Math.max(56, 18 * (crowd.get(position) ?? 1) + 22);
    middle.set(position, x + width / 2);
    x += width;
  }
  const layers = [...new Set(neurons.map((node) => node.layer))].sort((a, b) => a - b);
  const height = ROW * (layers.length + 3) + 36;
  const row = new Map(layers.map((layer, i) => [layer, height - 36 - ROW * (i + 2)]));
  const at = new Map();
  const next = new Map();
  for (const node of kept) at.set(node.label, { node, x: middle.get(node.position), y: height - 36 });
  for (const node of neurons) {
    const place = `${node.layer} ${node.position}`;
    const i = next.get(place) ?? 0;
    next.set(place, i + 1);
    at.set(parts.idOf(node.label), { node, x: middle.get(node.position) + 18 * (i - (beside.get(place) - 1) / 2), y: row.get(node.layer) });
  }
  const target = nodes.find((node) => node.kind === "target");
  if (target) at.set("target", { node: target, x: middle.get(data.position), y: 14 });
  return {
    at,
    height,
    width: x + 8,
    rules: layers.map((layer) => [row.get(layer), String(layer)]),
    names: positions.map((position) => [middle.get(position), parts.token(position)]),
  };
}

function line(edge, at) {
  const [from, to] = [at.get(edge.source), at.get(edge.target)];
  const bend = Math.max(8, Math.abs(from.y - to.y) / 3);
  const d = `M${from.x} ${from.y}C${from.x} ${from.y - bend} ${to.x} ${to.y + bend} ${to.x} ${to.y}`;
  return s(edge.weight < 0 ? "path.edge.lowers" : "path.edge.raises", { d, "stroke-width": (0.6 + 5 * edge.share).toFixed(2) });
}

function point(view, id, { node, x, y }, largest) {
  const r = node.kind === "neuron" ? 4 + 4 * Math.sqrt(Math.abs(node.total_effect) / largest) : 6;
  const shape = {
    neuron: () => s("circle", { cx: x, cy: y, r: r.toFixed(1) }),
    embedding: () => s("rect", { x: x - 5, y: y - 5, width: 10, height: 10 }),
    target: () => s("path", { d: `M${x} ${y - 8}l8 8l-8 8l-8 -8z` }),
  }[node.kind];
  const name = node.kind === "target" ? `the target, ${visible(view.data.target.texts[0])}` : `${id}, ${view.parts.title(id)}, effect ${signed(node.total_effect)}`;
  const pinnable = node.kind === "target" ? {} : { "data-part": id };
  return s(
    `g.node.${node.kind}${node.sink ? ".sink" : ""}`,
    { role: "button", tabindex: node.kind === "target" ? 0 : -1, "aria-label": name, "data-node": id, ...pinnable },
    shape(),
    node.kind === "target" ? s("text", { x: x + 12, y: y + 4 }, visible(view.data.target.texts[0])) : null,
  );
}

function spoken(edge, view) {
  const through = (edge.through ?? []).map((one) => `${plain(one.head)} ${percent(one.share)}`);
  return [
    `${plain(edge.source)} → ${edge.target === "target" ? visible(view.data.target.texts[0]) : plain(edge.target)}: ${signed(edge.weight)} (${percent(edge.share)} of what flows in)`,
    through.length ? `through ${through.join(", ")}` : "along the residual stream",
  ];
}

/** One node is in the order of Tab; an arrow key goes to the nearest in its direction. */
function walking(picture, at) {
  picture.addEventListener("keydown", (event) => {
    const direction = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] }[event.key];
    const here = at.get(event.target.dataset.node);
    if (!direction || !here) return;
    event.preventDefault();
    let best = null;
    for (const [id, spot] of at) {
      const [dx, dy] = [spot.x - here.x, spot.y - here.y];
      const along = dx * direction[0] + dy * direction[1];
      const aside = Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]);
      if (along > 0.5 && (!best || along + 2 * aside < best.far)) best = { id, far: along + 2 * aside };
    }
    if (!best) return;
    event.target.setAttribute("tabindex", "-1");
    const next = [...picture.querySelectorAll("[data-node]")].find((node) => node.dataset.node === best.id);
    next.setAttribute("tabindex", "0");
    next.focus();
  });
}
