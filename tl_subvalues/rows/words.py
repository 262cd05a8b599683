"""The words of rows, both ways: what a positive coefficient writes, and what a negative one."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.labels import parse_label
from tl_subvalues.model_view import decode_each
from tl_subvalues.numerics.blocks import no_autocast_no_grad
from tl_subvalues.numerics.extremes import extremes
from tl_subvalues.readout.readout import Readout
from tl_subvalues.rows.rows import Rows
from tl_subvalues.words.readings import ByRow, RowReading, row_reading


def words_of(vectors: Float[Tensor, "n d_model"], reading: RowReading, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ids and the values of each row's top and bottom k words: [n, side, k]."""
    ids, values = [], []
    for block in vectors.split(reading.at_once):
        panels = reading.panels(block, torch.zeros(len(block), dtype=torch.long, device=block.device))
        best = extremes(panels, k, [True, False])
        values.append(torch.stack([best[largest][0].float() for largest in (True, False)], 1).cpu())
        ids.append(torch.stack([best[largest][1].int() for largest in (True, False)], 1).cpu())
    return torch.cat(ids).numpy(), torch.cat(values).numpy()


@no_autocast_no_grad
def row_words(rows: Rows, labels: Sequence[str], k: int, by: ByRow) -> list[dict[str, list[dict[str, Any]]]]:
    """Each row's words as records of token, token_id and value: its "top" and its "bottom", sign as stored.

    Args:
        rows: what the labels are among.
        labels: of neurons.
        k: words a side.
        by: the reading; values are called so.

    Raises:
        UnsupportedModelError: if words have no columns.
    """
    if not labels:
        return []
    reading = row_reading(Readout(rows.view, scale=1.0), by)
    numbers = torch.tensor([rows.number_of(parse_label(label)) for label in labels])
    ids, values = words_of(rows.chosen(numbers), reading, k)
    return [
        {
            side: [
                {"token": token, "token_id": token_id, by: value}
                for token, token_id, value in zip(
                    decode_each(rows.view, ids[row, number].tolist()),
                    ids[row, number].tolist(),
                    values[row, number].tolist(),
                    strict=True,
                )
            ]
            for number, side in enumerate(("top", "bottom"))
        }
        for row in range(len(labels))
    ]
