"""The one product of the query side: covectors at a place times the vectors that were added before it.

    score(c -> reader) = <c, covector of the reader>

An activation score takes one neuron's covector, a query score a weighted sum of many. The covectors come first: no
tensor of readers × components × d_model is made.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from tl_subvalues.decomposition.run import Run, Site
from tl_subvalues.errors import UnsupportedModelError
from tl_subvalues.upstream.sources import Source
from tl_subvalues.upstream.subkeys import Readers

# The covectors that read what was added at a place (None: at layer 0's entrance); None if none does.
CovectorsAt = Callable[[Site | None], Float[Tensor, "reader d_model"] | None]


def scores(
    sources: Iterable[Source], covectors_at: CovectorsAt
) -> Iterator[tuple[Source, Float[Tensor, "reader component"]]]:
    """Scores of all components of every source that is read."""
    for source in sources:
        covectors = covectors_at(source.site)
        if covectors is not None:
            yield source, torch.stack([source.parts.subvalues.inner_products(covector) for covector in covectors])


def check_sum(
    run: Run,
    readers: Readers,
    what: str,
    covectors: Float[Tensor, "neuron d_model"],
    sums: Float[Tensor, " neuron"],
    sizes: Float[Tensor, " neuron"],
) -> None:
    """Check that scores of all earlier components add up to what neurons read of the residual stream.

    Args:
        run: at the position where they read.
        readers: whose scores they are.
        what: the scores add up to, for the message.
        covectors: that they read with.
        sums: of each neuron's scores.
        sizes: of each neuron's scores, taken without their signs.

    Raises:
        UnsupportedModelError: if something that is not among the components was added to the residual stream.
    """
    x = run.read(readers.layer, readers.sublayer)
    parts = [*run.embeddings().values(), *(site.output for site in run.read_by(readers.layer, readers.sublayer))]
    # The residual stream is rounded at every addition, in the model's dtype; beyond that, 3e-7 of the size was seen.
    added = torch.stack(parts).norm(dim=-1).sum() * torch.finfo(run.view.dtype).eps
    limit = 1e-4 * sizes + covectors.norm(dim=-1).to(sizes) * added.to(sizes)
    error = (sums - (covectors @ x.to(covectors)).to(sums)).abs()
    if not bool((error <= limit).all()):
        worst = int((error - limit).argmax())
        raise UnsupportedModelError(
            f"{run.view.name}: what reaches layer {readers.layer} at position {run.position} is not the sum of the "
            f"earlier sublayers' outputs, so the scores would not add up to the {what} (off by "
            f"{float(error[worst]):.2g} where they amount to {float(sizes[worst]):.2g})."
        )
