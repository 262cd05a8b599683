// `render(element, data, options)`: a finished trace as a page, in any element. Used by the file, the widget, the server.

import { curve } from "./curve.js";
import { h } from "./dom.js";
import { graph } from "./graph.js";
import { grid } from "./grid.js";
import { brief, closest, head } from "./head.js";
import { panel } from "./panel.js";
import { canonical, family, Parts, rowsOf } from "./parts.js";
import { State } from "./state.js";
import { tables } from "./tables.js";
import { count, percent, plain, signed } from "./text.js";

const READINGS = { cosine: "direction (cosine)", bs_value: "logits (bs-value)", prob_increase: "here (Δ p)" };
let views = 0;

/** What all sections share. */
class View {
  constructor(root, data, options) {
    Object.assign(this, { root, data, options, number: ++views });
    this.parts = new Parts(data);
    this.parts.idOf = (label) => canonical(label, data.position);
    this.state = new State(Boolean(options.address), options.first);
    this.asked = new Map(); // of parts: what the model at hand has to say of the question, "" where that is all
    this.tooltip = h("div.tooltip", { role: "tooltip", id: this.id("tooltip"), hidden: true });
    if (this.state.values.pins === null) this.state.values.pins = closest(this).slice(0, 1).map((row) => row.label);
  }

  id(name) {
    return `tlsv-${this.number}-${name}`;
  }

  readings() {
    return Object.keys(READINGS).filter((name) => this.data.words[name]);
  }

  reading() {
    const there = this.readings();
    return there.includes(this.state.values.words) ? this.state.values.words : (there[0] ?? "bs_value");
  }

  words(label) {
    return this.parts.words(this.parts.idOf(label), this.reading());
  }

  /** A part by its label, to be pinned wherever it stands. */
  named(label) {
    const id = this.parts.idOf(label);
    return h(`button.part.${family(id)}`, { type: "button", "data-part": id, "data-key": `part-${id}` }, plain(id));
  }

  /** Where a model is at hand, ask it for what is not kept of the pinned parts; each is asked about once. */
  askForPins() {
    if (!this.options.ask) return;
    for (const id of this.state.pins) if (!this.asked.has(id) && this.parts.lacks(id)) this.askFor(id);
  }

  async askFor(id) {
    this.asked.set(id, "asking the model …");
    this.redrawPanel();
    try {
      const found = await this.options.ask(id);
      this.parts.add(found);
      this.asked.set(id, found.notes.join(" "));
    } catch (error) {
      this.asked.set(id, error.message);
    }
    this.redrawPanel();
  }

  /** Show which parts are pinned, by their numbers. */
  mark(within) {
    for (const one of within.querySelectorAll("[data-part]")) {
      const number = this.state.number(one.dataset.part);
      if (number) one.setAttribute("data-pin", number);
      else one.removeAttribute("data-pin");
      if (one.matches("button, [role=button]")) one.setAttribute("aria-pressed", String(number > 0));
      else if (one.matches("[role=gridcell]")) one.setAttribute("aria-selected", String(number > 0));
    }
  }

  /** Draw anew what the focus may be in, and give it back. */
  keepingFocus(within, draw) {
    const focused = this.root.getRootNode().activeElement;
    const key = within.contains(focused) ? focused.dataset.key : null;
    const among = key ? [...within.querySelectorAll("[data-key]")].filter((one) => one.dataset.key === key).indexOf(focused) : 0;
    draw();
    if (!key) return;
    const again = [...within.querySelectorAll("[data-key]")].filter((one) => one.dataset.key === key);
    (again[among] ?? again[0] ?? within.querySelector("button"))?.focus();
  }

  /** Lines of text beside the pointer, or an element; none hides them. */
  tip(lines, beside) {
    const said = (lines ?? []).filter(Boolean);
    this.tooltip.toggleAttribute("hidden", !said.length);
    if (!said.length) return;
    this.tooltip.replaceChildren(...said.map((line) => h("div", {}, line)));
    const frame = this.root.getBoundingClientRect();
    const box = beside.clientX === undefined ? beside.getBoundingClientRect() : { right: beside.clientX, bottom: beside.clientY, top: beside.clientY };
    const left = Math.min(box.right + 12, document.documentElement.clientWidth - this.tooltip.offsetWidth - 12);
    const below = box.bottom + 14;
    const top = below + this.tooltip.offsetHeight > innerHeight ? box.top - this.tooltip.offsetHeight - 10 : below;
    this.tooltip.style.setProperty("left", `${Math.max(4, left) - frame.left}px`);
    this.tooltip.style.setProperty("top", `${top - frame.top}px`);
  }

  /** What hovering over a part tells. */
  tellOf(id) {
    const part = this.parts.get(id);
    const facts = [
      part.increase !== undefined && `at once ${signed(part.increase)} nats`,
      part.total !== undefined && `total effect ${signed(part.total)}`,
      part.coefficient !== undefined && `coefficient ${signed(part.coefficient)}`,
    ].filter(Boolean);
    const words = this.words(id)?.writes.slice(0, 6);
    return [`${plain(id)}: ${this.parts.title(id)}`, facts.join(" · "), words?.length ? `writes ${words.join("  ")}` : ""];
  }
}

/**
 * Show a finished trace.
 * @param {HTMLElement} element whose content is replaced
 * @param {any} data the document (schema tl-subvalues/saved-trace/1)
 * @param {{address?: boolean, first?: object, retarget?: (token: number) => void, ask?: (label: string) => Promise<any>}} options
 *   address: keep the view in the page's address; first: what its state starts with; retarget, ask: where a model is
 *   at hand, ask gives a fragment of a document (activations, words, parts, total_effects, ablations, notes)
 */
export function render(element, data, options = {}) {
  element.classList.add("tlsv");
  const view = new View(element, data, options);
  const main = h("div.columns", {}, h("div.sections", {}, brief(view), grid(view), curve(view), tables(view), graph(view)), panel(view));
  element.replaceChildren(head(view), choices(view), main, foot(view), view.tooltip);
  listen(view);
  view.mark(element);
  view.state.watch(() => view.mark(element));
  view.state.watch(() => view.askForPins());
  view.askForPins();
  return view;
}

function choices(view) {
  const { state } = view;
  const there = view.readings();
  const select = (label, name, options) => {
    const made = h("select", { "aria-label": label, on: { change: () => state.set({ [name]: made.value }) } }, options.map(([value, title]) => h("option", { value }, title)));
    const show = () => (made.value = name === "words" ? view.reading() : state.values[name]);
    state.watch(show);
    show();
    return h("label", {}, `${label} `, made);
  };
  const dress = () => {
    if (["light", "dark"].includes(state.values.theme)) view.root.setAttribute("data-theme", state.values.theme);
    else view.root.removeAttribute("data-theme");
  };
  state.watch(dress);
  dress();
  return h(
    "div.choices",
    { role: "group", "aria-label": "display" },
    there.length > 1 ? select("words by", "words", there.map((name) => [name, READINGS[name]])) : null,
    select("colours", "theme", [["", "as the system"], ["light", "light"], ["dark", "dark"]]),
  );
}

/** Hovering, pinning and Escape, wherever a part stands. */
function listen(view) {
  const { root, state } = view;
  const partOf = (target) => (target instanceof Element ? target.closest("[data-part]") : null);
  const tell = (event) => {
    const part = partOf(event.target);
    if (part) view.tip(view.tellOf(part.dataset.part), event.type === "focusin" ? part : event);
    else if (!event.target.closest?.(".edge, .curve")) view.tip(null);
  };
  root.addEventListener("pointerover", tell);
  root.addEventListener("focusin", tell);
  root.addEventListener("focusout", () => view.tip(null));
  root.addEventListener("pointerleave", () => view.tip(null));
  root.addEventListener("click", (event) => {
    const part = partOf(event.target);
    if (part && part.matches("button, [role=button], [role=gridcell]")) state.toggle(part.dataset.part);
  });
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") view.tip(null);
    const part = partOf(event.target);
    if (!["Enter", " "].includes(event.key) || !part?.matches("[role=button], [role=gridcell]") || part !== event.target) return;
    event.preventDefault();
    state.toggle(part.dataset.part);
  });
}

function foot(view) {
  const { data } = view;
  const names = { ffn_neurons: "FFN neurons", attn_neurons: "attention neurons", head_positions: "heads at a token", heads: "heads" };
  const certified = Object.entries(names).flatMap(([name, title]) => {
    const table = data.tables[name];
    const certificate = table?.attrs?.certificate;
    const n = rowsOf(table).length;
    if (!certificate || !n) return [];
    const how = certificate.method === "bound" ? `${count(certificate.evaluated)} evaluated, the rest excluded by an upper bound of ${signed(certificate.last_bound)}` : "all evaluated";
    return [h("li", {}, `${title}: ${n < certificate.candidates ? `exactly the highest ${count(n)}` : "all"} of ${count(certificate.candidates)}; ${how}.`)];
  });
  const { target } = data;
  return h(
    "footer",
    {},
    h("h2", {}, "What is exact, and what is not"),
    h(
      "ul",
      {},
      certified,
      h("li", {}, `Increases say what adding a part does at once, ${data.scale === "frozen" ? "with the final norm's scale held at this run's" : "with the final norm's scale taken anew"}. Those of whole sublayers add up from the embedding to the answer; those of their parts do not, each is measured by itself.`),
      h("li", {}, "Total effects follow a part through later layers by the gradient: an approximation, which an ablation bears out or not. “Measured” is the model run again."),
      h("li", {}, "Activation scores and the graph's edges add up exactly with norms, patterns and gates held; what is not shown is named as “others”."),
      h("li", {}, `Nats are natural logarithms: log p = ${signed(target.log_prob)} is p = ${percent(target.prob)}; +0.69 doubles a small probability.`),
      data.notes.map((note) => h("li.note", {}, plain(note))),
    ),
    h("p.versions", {}, [data.model.name, ...Object.entries(data.versions).map(([name, version]) => `${name} ${version}`)].map(plain).join(" · ")),
  );
}
