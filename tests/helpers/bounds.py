"""Bounds on every candidate's increase, from both sides, as the search makes them."""

from torch import Tensor, cat

from tl_subvalues.importance.bounds import site_bounds
from tl_subvalues.importance.candidates import Candidates


def both_bounds(candidates: Candidates) -> tuple[Tensor, Tensor]:
    """Upper and lower bounds of all candidates, in their order."""
    sites = site_bounds(candidates.reading, candidates.parts.numbers, both_sides=True)
    upper, lower = [], []
    for site, parts in zip(sites, candidates.groups, strict=True):
        products, lengths = parts.inner_products(site.gradient), parts.longest()
        upper.append(site.upper(parts, products, lengths))
        lower.append(site.lower(parts, products, lengths))
    return cat(upper), cat(lower)
