// The same view in a notebook: a module as anywidget takes it. The document is the model's `shown`; questions are messages.

import { h } from "./dom.js";
import { render } from "./page.js";
import { plain } from "./text.js";

const PATIENCE = 8000; // milliseconds without an answer, after which it is said whose answer it is

/** Light or dark, where the notebook says so. */
function themeOf({ dataset, classList }) {
  const light = { true: "light", false: "dark" }[dataset.jpThemeLight];
  return light ?? (classList.contains("vscode-dark") ? "dark" : classList.contains("vscode-light") ? "light" : "");
}

export default {
  render({ model, el }) {
    const status = h("p.help", { role: "status" });
    const place = h("div", { "data-lm-suppress-shortcuts": "true" }); // arrow keys and Enter are the view's, not the notebook's
    const open = new Map();
    let view = null;
    el.append(place, h("div.tlsv-said", {}, status));

    const asked = (question) =>
      new Promise((resolve, reject) => {
        const id = String(Math.random());
        const late = setTimeout(() => status.replaceChildren("No answer yet: the model answers while the notebook’s kernel runs and is free."), PATIENCE);
        open.set(id, { resolve, reject, late });
        model.send({ id, question });
      });
    const hear = ({ id, answer }) => {
      if (!open.has(id)) return; // another view of the same widget asked
      const { resolve, reject, late } = open.get(id);
      open.delete(id);
      clearTimeout(late);
      status.replaceChildren();
      if (answer.error === undefined) resolve(answer);
      else reject(new Error(answer.error));
    };
    const draw = () => {
      const { trace, document: data } = model.get("shown");
      const { theme = themeOf(document.body), words = "", tab } = view?.state.values ?? {};
      view = render(place, structuredClone(data), {
        first: { theme, words, ...(tab ? { tab } : {}) },
        ask: async (label) => (await asked({ ask: "part", trace, label })).part,
        retarget: (token) => {
          status.replaceChildren("asking the model …");
          asked({ ask: "retarget", trace, token }).catch((error) => status.replaceChildren(plain(error.message)));
        },
      });
    };
    model.on("msg:custom", hear);
    model.on("change:shown", draw);
    draw();
    return () => {
      model.off("msg:custom", hear);
      model.off("change:shown", draw);
    };
  },
};
