"""Does the prediction hold? Each part ablated alone, and all together, beside its predicted effect."""

from typing import TYPE_CHECKING, Any

import pandas as pd

from tl_subvalues.ablation.ablate import components, outcomes
from tl_subvalues.ablation.hooks import Mode
from tl_subvalues.labels import labels_in

if TYPE_CHECKING:
    from tl_subvalues.tracing.trace import Trace

# Positions run together in a batch of ablations; more are no faster a row on two CPU cores.
_TOKENS = 256
# A direct effect is made up for where less than this share of it is measured, in its direction.
_MADE_UP_FOR = 0.5
# Nats, below which a direct effect is too small to tell.
_SMALL = 0.05


def ablate_each(trace: "Trace", table: Any) -> pd.DataFrame:
    """The measured effect of setting each row's component to zero, beside the predicted effect.

    Args:
        trace: whose components they are.
        table: of `effects` (its total and direct effects go along), or labels.

    Returns:
        label, direct_effect and total_effect where the table has them, measured_effect (the measure before minus after,
        in nats), and self_repair: whether, of a direct effect of at least 0.05 nats, less than half is measured in its
        direction: later layers make up for the loss, or the part does the opposite through others. `attrs`: correlation
        and rank_correlation of total and measured effects, without rows at attention sinks where the table tells them;
        together, the measured effect of all at once.

    Raises:
        ValueError: as `ablation_hooks`.
    """
    labels = labels_in(table)
    view = trace.run.view
    found = components(view, labels)
    late = [label for label, one in zip(labels, found, strict=True) if (one.at or 0) > trace.position]
    if late:
        raise ValueError(
            f"{late[0]!r} is after position {trace.position}, where the target is predicted: the table is of another "
            "trace."
        )
    batch = max(1, _TOKENS // len(trace.tokens))
    measured = outcomes(view, trace, [[], *([one] for one in found), found], Mode(), batch_size=batch)
    values = measured.values[trace.measure].double()
    effects = (values[0] - values[1:-1]).numpy()
    shown = [
        name for name in ("direct_effect", "total_effect", "sink") if isinstance(table, pd.DataFrame) and name in table
    ]
    result = pd.DataFrame({"label": labels, **{name: table[name].to_numpy() for name in shown}})
    result["measured_effect"] = effects
    result.attrs["together"] = float(values[0] - values[-1])
    if "direct_effect" in result:
        direct = result["direct_effect"]
        along = result["measured_effect"] * direct.map(lambda value: 1.0 if value >= 0 else -1.0)
        result["self_repair"] = (direct.abs() >= _SMALL) & (along < _MADE_UP_FOR * direct.abs())
    if "total_effect" in result:
        rows = result[~result["sink"]] if "sink" in result else result
        pair = rows["total_effect"], rows["measured_effect"]
        result.attrs["correlation"] = float(pair[0].corr(pair[1]))
        result.attrs["rank_correlation"] = float(pair[0].rank().corr(pair[1].rank()))
    return result
