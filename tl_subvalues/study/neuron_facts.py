"""The facts that have a neuron at the top."""

from typing import Any, SupportsIndex

import pandas as pd

from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import view_of
from tl_subvalues.model_view.indexing import whole_number
from tl_subvalues.progress import bar
from tl_subvalues.readout.readout import Scale, require_scale
from tl_subvalues.study.facts import check_facts
from tl_subvalues.study.sources import read_rows
from tl_subvalues.study.traced import Tracer


def facts_of(
    model: Any,
    facts: Any,
    label: str,
    *,
    top: SupportsIndex = 300,
    scale: Scale = "frozen",
    prepend_bos: bool | None = None,
    show_progress: bool | None = None,
) -> pd.DataFrame:
    """Facts that have a neuron among their top, each traced.

    Args:
        model: a TransformerLens model.
        facts: as in `evaluate`.
        label: of an FFN neuron ("L24N1005"), or an attention neuron ("L23H4D38", at whatever position it reads).
        top: how many of its kind are the top of a fact.
        scale: as in `trace`.
        prepend_bos: as in `trace`.
        show_progress: as in `evaluate`.

    Returns:
        Columns prompt, target, rank (among its kind; 1 is the top; of an attention neuron its best), increase (of what
        the fact asks for, in nats, over its positions), coefficient (at the best rank). The largest increase first.

    Raises:
        ValueError: for bad facts, and a label of anything else.
        UnsupportedModelError: as `trace`, and for models without such neurons.
    """
    view, top = view_of(model), whole_number(top, "top")
    require_scale(scale)
    component = parse_label(label)
    if component.unit not in ("ffn_neuron", "attn_neuron"):
        raise ValueError(f"{label!r} is no neuron; name one such as 'L24N1005' (FFN) or 'L23H4D38' (attention).")
    name, found = label.partition("@")[0], []
    checked, tracer = check_facts(view, read_rows(facts), on_error="stop", prepend_bos=prepend_bos), Tracer(view, scale)
    with bar("facts", len(checked.facts), "facts", show=show_progress) as shown:
        for fact in checked.facts:
            traced = tracer(fact)
            table = (traced.ffn_neurons if component.unit == "ffn_neuron" else traced.attn_neurons)(top=top)
            own = table[table["label"].str.partition("@")[0] == name]
            if len(own):
                found.append(
                    {
                        "prompt": fact.columns["prompt"],
                        "target": fact.columns["target"],
                        "rank": int(own.index[0]) + 1,
                        "increase": float(own[traced.target.column].sum()),
                        "coefficient": float(own["coefficient"].iloc[0]),
                    }
                )
            shown.update()
    table = pd.DataFrame(found, columns=["prompt", "target", "rank", "increase", "coefficient"])
    table = table.sort_values("increase", ascending=False, kind="stable", ignore_index=True)
    table.attrs = {"facts": len(checked.facts), "top": top}
    return table
