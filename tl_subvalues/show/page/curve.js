// log p and p of the target as the sublayers are added one at a time.

import { h, s } from "./dom.js";
import { rowsOf } from "./parts.js";
import { percent, plain, signed } from "./text.js";

const SIZE = { width: 640, height: 190, left: 52, right: 52, top: 10, bottom: 28 };

/** A few round numbers between two. */
function rounded(low, high) {
  const least = Math.max(high - low, 1e-9) / 5;
  const ten = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 5, 10].map((n) => n * ten).find((n) => n >= least);
  const from = Math.ceil(low / step);
  return Array.from({ length: Math.floor(high / step) - from + 1 }, (_, i) => Number(((from + i) * step).toPrecision(6)));
}

export function curve(view) {
  const { data, state } = view;
  const rows = rowsOf(data.tables.curve);
  if (rows.length < 2) return h("section.card", { hidden: true });
  const measure = data.target.measure;
  const values = rows.map((row) => Number(row[measure]));
  const probs = rows.map((row) => Number(row.prob));
  const [low, high] = [Math.min(...values, 0), Math.max(...values, 0)];
  const { width, height, left, right, top, bottom } = SIZE;
  const x = (i) => left + ((width - left - right) * i) / (rows.length - 1);
  const y = (value) => top + (height - top - bottom) * (1 - (value - low) / Math.max(high - low, 1e-9));
  const yProb = (p) => top + (height - top - bottom) * (1 - p);
  const path = (points) => points.map(([px, py], i) => `${i ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
  const ticks = rounded(low, high);
  const step = Math.max(1, Math.ceil(rows.length / 12 / 2) * 2);
  const marks = s("g");
  const cursor = s("g.cursor");
  const drawMarks = () => {
    marks.replaceChildren(
      ...rows.flatMap((row, i) => {
        const number = state.number(row.label);
        return number ? [s("circle.pin", { cx: x(i), cy: y(values[i]), r: 7, "data-pin": number }), s("text.pin-number", { x: x(i), y: y(values[i]) - 10, "text-anchor": "middle" }, String(number))] : [];
      }),
    );
  };
  let at = rows.length - 1;
  const said = (i) => `${i ? `after ${plain(rows[i].label)}` : "the embedding"}: ${measure === "log_prob" ? "log p" : "difference"} ${signed(values[i])}, p ${percent(probs[i])}`;
  const picture = s(
    "svg.curve",
    {
      viewBox: `0 0 ${width} ${height}`,
      role: "slider",
      tabindex: 0,
      "aria-label": "the target's log-probability, sublayer by sublayer; arrow keys move, Enter pins",
      "aria-valuemin": 0,
      "aria-valuemax": rows.length - 1,
      "aria-valuenow": at,
      "aria-valuetext": said(at),
    },
    ticks.map((tick) => [s("line.rule", { x1: left, x2: width - right, y1: y(tick), y2: y(tick) }), s("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick).replaceAll("-", "−"))]),
    [0, 0.5, 1].map((tick) => s("text.second", { x: width - right + 6, y: yProb(tick) + 4 }, `${100 * tick} %`)),
    rows.map((row, i) => (i % step === 1 ? s("text", { x: x(i), y: height - 8, "text-anchor": "middle" }, String(row.label).replace(/^(\d+)_.*/, "$1")) : null)),
    s("path.line.probability", { d: path(probs.map((p, i) => [x(i), yProb(p)])) }),
    s("path.line.measure", { d: path(values.map((value, i) => [x(i), y(value)])) }),
    marks,
    cursor,
  );
  const show = (i, event) => {
    at = Math.max(0, Math.min(rows.length - 1, i));
    cursor.replaceChildren(s("line.axis", { x1: x(at), x2: x(at), y1: top, y2: height - bottom }), s("circle", { cx: x(at), cy: y(values[at]), r: 4 }));
    picture.setAttribute("aria-valuenow", at);
    picture.setAttribute("aria-valuetext", said(at));
    view.tip([said(at), at ? `${plain(rows[at].label)} adds ${signed(values[at] - values[at - 1])}` : ""], event ?? picture);
  };
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    show(Math.round(((((event.clientX - box.left) / box.width) * width - left) / (width - left - right)) * (rows.length - 1)), event);
  });
  const hide = () => {
    cursor.replaceChildren();
    view.tip(null);
  };
  picture.addEventListener("pointerleave", hide);
  picture.addEventListener("blur", hide);
  picture.addEventListener("click", () => at && state.toggle(rows[at].label));
  picture.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowDown: at - 1, ArrowUp: at + 1, Home: 0, End: rows.length - 1 }[event.key];
    if (to !== undefined) show(to);
    else if (event.key === "Enter" && at) state.toggle(rows[at].label);
    else return;
    event.preventDefault();
  });
  state.watch(drawMarks);
  drawMarks();
  return h(
    "section.card",
    { "aria-label": "the curve" },
    h("h2", {}, "From the embedding to the answer"),
    h("p.help", {}, h("span.key.measure", {}), measure === "log_prob" ? " log p (left, in nats)" : " log p − log p(against) (left, in nats)", " and ", h("span.key.probability", {}), " p (right) of the target, read after each sublayer, by layer."),
    picture,
  );
}
