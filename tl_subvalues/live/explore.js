// The page of `tl-subvalues explore`: what is asked, how far the answer is, what was asked before; below it the trace.

import { h } from "./dom.js";
import { render } from "./page.js";
import { percent, plain, visible } from "./text.js";

const HEADERS = { "Content-Type": "application/json", "X-Tl-Subvalues": "explore" };

/**
 * Ask the server's session; steps are told as they come.
 * @param {object} question as `tl_subvalues.live.session` says
 * @param {(step: string) => void} tell
 * @param {AbortSignal} [signal] that the answer is not wanted any more
 */
async function asked(question, tell = () => {}, signal = undefined) {
  const response = await fetch("/ask", { method: "POST", headers: HEADERS, body: JSON.stringify(question), signal });
  if (!response.ok) throw new Error(await response.text());
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let answer = null; ; ) {
    const { done, value } = await reader.read();
    if (done) throw new Error("the server ended before its answer did.");
    const lines = (text + value).split("\n");
    text = lines.pop();
    for (const line of lines) answer = JSON.parse(line);
    if (!answer) continue;
    if (answer.error !== undefined) throw new Error(answer.error);
    if (answer.step === undefined) return answer;
    tell(answer.step);
  }
}

const top = document.getElementById("ask");
const place = document.getElementById("trace");
let view = null;
let working = null;

const box = (name, attributes) => h("input", { type: "text", name, spellcheck: "false", autocomplete: "off", maxlength: 2000, ...attributes });
const prompt = h("textarea", { name: "prompt", rows: 2, spellcheck: "false", "aria-describedby": "ask-help" });
const target = box("target", { placeholder: "the model’s own choice" });
const against = box("against", { placeholder: "nothing" });
const go = h("button.go", { type: "submit" }, "Trace");
const cancel = h("button", { type: "button", hidden: true, on: { click: () => working?.abort() } }, "Cancel");
const status = h("p.status", { role: "status" });
const wrong = h("p.wrong", { role: "alert" });
const before = h("ol.before");
const past = h("details.past", { hidden: true }, h("summary", {}, "asked before"), before);

const form = h(
  "form",
  { "aria-label": "question", on: { submit: (event) => (event.preventDefault(), trace()) } },
  h("label.wide", {}, h("span", {}, "prompt"), prompt),
  h("label", {}, h("span", {}, "target"), target),
  h("label", {}, h("span", {}, "against"), against),
  h("div.buttons", {}, go, cancel),
  h("p.help", { id: "ask-help" }, "The target is one word that could come next: mind its leading space, as in “ Paris”. Against: another word, or “rest” for all others. Several words: [\" Paris\", \" Rome\"]. Enter asks, Shift and Enter begin a new line."),
);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

function trace() {
  return work({ ask: "trace", prompt: prompt.value, target: target.value, against: against.value });
}

/** One question whose answer is a trace; while it is worked at, no other is asked. */
async function work(question) {
  if (working) return;
  working = new AbortController();
  wrong.replaceChildren();
  busy(true);
  const began = performance.now();
  let step = "asked";
  const tell = () => status.replaceChildren(`${plain(step)} … ${Math.round((performance.now() - began) / 1000)} s`);
  const clock = setInterval(tell, 500);
  try {
    const said = (one) => {
      step = one;
      tell();
    };
    show(await asked(question, said, working.signal));
    status.replaceChildren(`done in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  } catch (error) {
    status.replaceChildren(working.signal.aborted ? "stopped." : "");
    if (!working.signal.aborted) wrong.replaceChildren(sentence(error));
  } finally {
    clearInterval(clock);
    working = null;
    busy(false);
  }
}

function sentence(error) {
  return error instanceof TypeError ? "the server does not answer: is tl-subvalues explore still running?" : plain(error.message);
}

function busy(is) {
  go.toggleAttribute("disabled", is);
  cancel.toggleAttribute("hidden", !is);
  place.toggleAttribute("aria-busy", is);
  if (is) cancel.focus();
  else if (document.activeElement === document.body) prompt.focus();
}

function show({ trace: number, document: data, history }) {
  const { theme = "", words = "", tab } = view?.state.values ?? {};
  view = render(place, data, {
    first: { theme, words, ...(tab ? { tab } : {}) },
    retarget: (token) => work({ ask: "retarget", trace: number, token }),
    ask: async (label) => (await asked({ ask: "part", trace: number, label })).part,
  });
  const dress = () => (place.dataset.theme ? top.setAttribute("data-theme", place.dataset.theme) : top.removeAttribute("data-theme"));
  view.state.watch(dress);
  dress();
  list(history, number);
}

/** What was asked before, each a button that shows it again. */
function list(history, number) {
  past.toggleAttribute("hidden", !history.length);
  const named = (words) => (words === "rest" ? "all others" : words.map(visible).join(" or "));
  before.replaceChildren(
    ...history.map((one) =>
      h(
        "li",
        {},
        h(
          "button",
          { type: "button", "aria-current": one.trace === number ? "true" : null, on: { click: () => work({ ask: "show", trace: one.trace }) } },
          h("span.token.prompted", {}, visible(one.prompt)),
          " → ",
          h("span.token.target", {}, named(one.target)),
          ` ${percent(one.prob)}`,
          one.against ? ` against ${named(one.against)}` : "",
        ),
      ),
    ),
  );
}

top.append(h("p.named", {}, "Ask ", h("b", {}, plain(top.dataset.model))), form, status, wrong, past);
place.replaceChildren(h("h1", {}, "Where in the model does its next word come from?"), h("p", {}, "Write a prompt above. Then hover over what you see, and click what you want to know more of: the model answers for any part."));
prompt.focus();
asked({ ask: "history" }).then(
  ({ history }) => list(history, null),
  (error) => wrong.replaceChildren(sentence(error)),
);
