"""One softmax over classes: what a word's log-probability is made of, read in blocks.

logits = cap * tanh(factor * ((y into) W + b) / cap), with y the normed residual stream, W one column a class, and a
factor or a soft cap where the model has one. Most models have one softmax, over all words, and no `into`. An adaptive
softmax has one over its head (frequent words, and a class for each band of rarer words) and one in each band, whose
columns lie in a smaller space that `into` leads to; a rare word's log-probability is the sum of two log-softmaxes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_subvalues.numerics.blocks import padded
from tl_subvalues.numerics.distributions import Distributions

# Vectors and words of one block on a CPU: its logits take 1 MB, which fits a core's cache. A matrix product may sum in
# another order when it has another number of rows, so a block always has VECTOR_BLOCK rows, filled up with zeros: a
# vector then gives the same bits whatever stands beside it, ties stay ties, and a search gives what a sweep gives.
# 160 rows, because two such blocks certify the default top 300 (SmolLM2-135M needs 304 evaluations); a row takes 0.92
# to 1 times as long in blocks of 128 to 320 rows. A multiple of 8, and vectors × words rather than words × vectors
# (which would be 5% faster): in float64 the rows left over at the edge of a processor's tiles get other bits.
VECTOR_BLOCK = 160
VOCAB_BLOCK = 2048
# Numbers of a panel, products with some thousand words that are held together: 25 MB.
PANEL = 512 * 12288
# Numbers between two rows of a panel: rows a power of two apart meet in the same places of the cache (a tenth slower).
_APART = 16
# On an accelerator: a block of logits takes 128 MB, a panel twice that.
ACCELERATOR_BLOCKS = (2048, 16384)
ACCELERATOR_PANEL = 2048 * 32768
# Sums of exp() outside this range are computed again around their maximum.
_SAFE_SUM = (1e-30, 1e30)


@dataclass(frozen=True)
class Columns:
    """The weights of one softmax, as the model has them: matrices side by side, one column a class, never copied."""

    matrices: tuple[Float[Tensor, "width _"], ...]
    bias: Float[Tensor, " classes"] | None = None
    into: Float[Tensor, "d_model width"] | None = None  # None: the columns are in the residual stream's own space

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return sum(matrix.shape[1] for matrix in self.matrices)


class Softmax:
    """One softmax, computed in `dtype` (float32 or better) on `device`; classes are counted from 0.

    Vectors come in through the final norm: `normed` with its bias, `lin` by its linear part alone. All methods but
    `logits` and `bs_values` read the classes in blocks and never hold vectors × classes.
    """

    def __init__(
        self, columns: Columns, *, factor: float, soft_cap: float | None, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._columns = columns
        self.factor = factor
        self._soft_cap = soft_cap
        self._dtype = dtype
        self._device = device
        self.n_classes = columns.n_classes

    @property
    def has_columns(self) -> bool:
        """Whether classes can be read by their own columns."""
        return True

    @property
    def in_own_space(self) -> bool:
        """Whether columns lie in another space than the residual stream's."""
        return self._columns.into is not None

    @property
    def block_sizes(self) -> tuple[int, int]:
        """Vectors and classes that are read at a time on this device."""
        return (VECTOR_BLOCK, VOCAB_BLOCK) if self._device.type == "cpu" else ACCELERATOR_BLOCKS

    def logits(self, normed: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest classes"]:
        """Logits of all classes."""
        return self._capped(self._raw(normed))

    def logit_increases(
        self, normed: Float[Tensor, " d_model"], lin: Float[Tensor, "n d_model"]
    ) -> Float[Tensor, "n classes"]:
        """By how much the logits of all classes grow where each of `lin` is added to `normed`."""
        added = self.bs_values(lin)
        if self._soft_cap is None:
            return added
        # In float64, so that small increases keep their digits.
        before = self._raw(normed).double() * (self.factor / self._soft_cap)
        grown = torch.tanh(before + added.double() / self._soft_cap) - torch.tanh(before)
        return (grown * self._soft_cap).to(added)

    def bs_values(self, lin: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest classes"]:
        """Before-softmax values of all classes: the linear part of `logits`, caps aside."""
        values = self._project(lin)
        return values if self.factor == 1.0 else values * self.factor

    def panels(
        self,
        lin: Float[Tensor, "n d_model"],
        n_classes: int,
        prepared: Callable[[Tensor], Tensor] | None = None,
    ) -> Iterator[tuple[slice, Float[Tensor, "n _"]]]:
        """Products of vectors with the first classes' columns, some thousand at a time, each over the last ones.

        Args:
            lin: vectors, as many as `block_sizes` allows for little memory.
            n_classes: how many classes.
            prepared: what is to be done with columns first, which are as they are stored otherwise.
        """
        rows, start, filled = self.inside(lin), 0, 0
        most = (PANEL if self._device.type == "cpu" else ACCELERATOR_PANEL) // max(1, len(rows))
        size = min(n_classes, max(most, self.block_sizes[1]))
        panel = rows.new_empty(len(rows), size + _APART)[:, :size]
        for words, W in self.blocks():
            W = W[:, : max(0, n_classes - words.start)]
            width = W.shape[1]
            if filled + width > size:
                yield slice(start, start + filled), panel[:, :filled]
                start, filled = start + filled, 0
            if width:
                torch.mm(rows, W if prepared is None else prepared(W), out=panel[:, filled : filled + width])
                filled += width
        if filled:
            yield slice(start, start + filled), panel[:, :filled]

    def bs_panels(
        self, lin: Float[Tensor, "n d_model"], n_classes: int
    ) -> Iterator[tuple[slice, Float[Tensor, "n _"]]]:
        """Before-softmax values of the first classes, some thousand at a time."""
        for words, values in self.panels(lin, n_classes):
            yield words, values if self.factor == 1.0 else values.mul_(self.factor)

    def bs_value(self, lin: Float[Tensor, "n d_model"], index: int) -> Float[Tensor, " n"]:
        """Before-softmax value of one class, in float64."""
        return _dot(lin, self.pulled_back(self.column(index)))

    def class_logits(self, normed: Float[Tensor, "n d_model"], ids: Sequence[int]) -> Float[Tensor, "n class"]:
        """Logits of some classes, in float64."""
        made = [
            self._capped(_dot(normed, self.pulled_back(self._column(i))) + self._bias(slice(i, i + 1))) for i in ids
        ]
        return torch.stack(made, -1)

    def log_share(
        self, normed: Float[Tensor, "n d_model"], over: Float[Tensor, " n"], without: Sequence[int] = ()
    ) -> Float[Tensor, " n"]:
        """`over` minus log Σ_t exp(z_t): a class's log-probability where `over` is its logit.

        Args:
            normed: vectors through the final norm.
            over: what the sum is measured against, in nats.
            without: classes that are left out of the sum.
        """
        rows, shift = self._rows(normed), padded(over.to(normed), self.block_sizes[0])

        def block(rows: Tensor, W: Tensor, words: slice, at: slice) -> Tensor:
            logits = self._capped((rows @ W).add_(self._bias(words)))
            return _left_out(logits, words, without).sub_(shift[at, None])

        return -self._log_sum_exp(rows, block)[: len(over)]

    def log_mean_exp(
        self, lin: Float[Tensor, "n d_model"], under: Distributions, site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """log Σ_t p_t exp(bs_t); vector i under the distribution of site[i]. Without a soft cap only.

        A vector's bits are its own: no other vector, and no other vector's site, bears on them.
        """
        lin, result = lin * self.factor, torch.zeros(len(lin), dtype=lin.dtype, device=lin.device)
        # log1p Σ p (e^bs − 1): small increases keep their digits, which log Σ e^(log p + bs) loses to rounding.
        doubtful = under.vanishes(site)
        plain = torch.nonzero(~doubtful).flatten()
        if len(plain):
            total = self._mean_growth(lin[plain], under.p, site[plain])
            result[plain] = total.log1p().to(lin.dtype)
            doubtful[plain] = ~((total > -0.5) & (total < _SAFE_SUM[1]))
        again = torch.nonzero(doubtful).flatten()
        if len(again):
            sites = padded(site[again], self.block_sizes[0])

            def block(rows: Tensor, W: Tensor, words: slice, at: slice) -> Tensor:
                return (rows @ W).add_(under.log_p(sites[at], words))

            result[again] = self._log_sum_exp(self._rows(lin[again]), block)[: len(again)]
        return result

    def _mean_growth(
        self, lin: Float[Tensor, "n d_model"], p: Float[Tensor, "site classes"], site: Int[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Σ_t p_t (exp(bs_t) − 1) in float64, each vector's sum taken alone under its own site's distribution."""
        n, size = len(lin), self.block_sizes[0]
        rows, site = self._rows(lin), padded(site, size)
        total = torch.zeros(len(rows), dtype=torch.float64, device=lin.device)
        sites = [own if (own != own[0]).any() else own[:1] for own in site.split(size)]
        spans = list(zip(rows.split(size), sites, total.split(size), strict=True))
        for words, W in self.blocks():
            p_words = p[:, words]
            for vectors, own, sums in spans:
                sums += (vectors @ W).expm1_().mul_(p_words[own]).sum(-1)
        return total[:n]

    def log_mean_exp_of_multiples(
        self,
        lin: Float[Tensor, "n d_model"],
        multiples: Float[Tensor, "j n"],
        under: Distributions,
        site: Int[Tensor, " j"],
    ) -> Float[Tensor, "j n"]:
        """`log_mean_exp` of multiples[j, i] * lin[i] at site[j]: one product with the classes for all j.

        NaN where the sum is not to be trusted (see `log_mean_exp`). Without a soft cap only.
        """
        size, n = self.block_sizes[0], len(lin)
        lin, multiples = self._rows(lin * self.factor), padded(multiples.T.contiguous(), size).T
        total = torch.zeros(multiples.shape, dtype=torch.float64, device=lin.device)
        for words, W in self.blocks():
            for start in range(0, len(lin), size):
                at = slice(start, start + size)
                bs = lin[at] @ W
                for j, row in enumerate(site.tolist()):
                    total[j, at] += (bs * multiples[j, at, None]).expm1_() @ under.p[row, words]
        trusted = (total > -0.5) & (total < _SAFE_SUM[1]) & ~under.vanishes(site)[:, None]
        return total.log1p().masked_fill(~trusted, torch.nan).to(lin.dtype)[:, :n]

    # Columns are in their own space; `inside` leads vectors there, `pulled_back` covectors from there.

    def column(self, index: int) -> Float[Tensor, " width"]:
        """One class's readout column u: bs_value(lin, index) = <inside(lin), u>."""
        return self._column(index) * self.factor

    def columns(self, ids: Sequence[int]) -> Float[Tensor, "class width"]:
        """Some classes' readout columns."""
        return torch.stack([self.column(index) for index in ids])

    def mean_columns(self, p: Float[Tensor, "site classes"]) -> Float[Tensor, "site width"]:
        """Σ_t p_t u_t, the expected readout column under each distribution, blocks added up in float64."""
        width = self._columns.matrices[0].shape[0]
        total = torch.zeros(len(p), width, dtype=torch.float64, device=self._device)
        for words, W in self.blocks():
            total += p[:, words] @ W.T
        return total.to(self._dtype) * self.factor

    def mean_squares(
        self, p: Float[Tensor, "site classes"], weights: Float[Tensor, " d_model"] | None
    ) -> Float[Tensor, " site"]:
        """E_p ‖w ∘ u_t‖² under each distribution, in the residual stream's space; where columns are not, a bound."""
        into, total = self._columns.into, torch.zeros(len(p), dtype=torch.float64, device=self._device)
        squares = None if weights is None or into is not None else weights.pow(2)[None]
        squared = torch.empty(0, dtype=self._dtype, device=self._device)
        for words, W in self.blocks():
            squared = torch.mul(W, W, out=squared if squared.shape == W.shape else torch.empty_like(W))
            each = squared.sum(0) if squares is None else (squares @ squared)[0]
            total += p[:, words] @ each
        if into is not None:
            into = self._cast(into)
            total *= float((into if weights is None else into * weights[:, None]).norm()) ** 2
        return total.to(self._dtype) * self.factor**2

    def column_spread(
        self, p: Float[Tensor, "site classes"], mean: Float[Tensor, "site width"]
    ) -> tuple[Float[Tensor, " site"], Float[Tensor, " site"]]:
        """How far columns lie from their mean under each distribution: max_t ‖u_t − ū‖, and E_p ‖u_t − ū‖².

        What all columns share is taken from them first: squares of large numbers would swallow the differences.
        """
        widest = torch.zeros(len(mean), dtype=self._dtype, device=self._device)
        variance = torch.zeros_like(widest)
        shared = mean.mean(0)
        off = mean - shared
        for words, W in self.blocks():
            columns = W * self.factor - shared[:, None]
            squared = columns.pow(2).sum(0) - 2 * off @ columns + off.pow(2).sum(-1, keepdim=True)
            widest = torch.maximum(widest, squared.amax(-1))
            variance += (p[:, words] * squared.clamp(min=0)).sum(-1)
        return widest.clamp(min=0).sqrt(), variance

    def inside(self, lin: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest width"]:
        """Vectors in the space that the columns lie in."""
        return lin if self._columns.into is None else lin @ self._cast(self._columns.into)

    def pulled_back(self, covectors: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest d_model"]:
        """The transpose of `inside`: <c, inside(v)> = <pulled_back(c), v>."""
        return covectors if self._columns.into is None else covectors @ self._cast(self._columns.into).T

    def _rows(self, vectors: Float[Tensor, "n d_model"]) -> Float[Tensor, "padded width"]:
        """Vectors in the columns' space, filled up to whole blocks (and led there in blocks, for the same bits)."""
        rows = padded(vectors, self.block_sizes[0]).contiguous()
        if self._columns.into is None or not len(rows):
            return self.inside(rows)
        return torch.cat([self.inside(block) for block in rows.split(self.block_sizes[0])])

    def _column(self, index: int) -> Float[Tensor, " width"]:
        """One column as it is stored."""
        for matrix in self._columns.matrices:
            if index < matrix.shape[1]:
                return self._cast(matrix[:, index])
            index -= matrix.shape[1]
        raise IndexError(index)

    def _log_sum_exp(
        self, rows: Float[Tensor, "n width"], block: Callable[[Tensor, Tensor, slice, slice], Tensor]
    ) -> Float[Tensor, " n"]:
        """log Σ_t exp(z_t) with z = block(rows, W, words, at), made and consumed block by block.

        The plain sum where it neither over- nor underflows (log-probs plus bs-values seldom do), else around its
        maximum.
        """
        size = self.block_sizes[0]
        total = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for words, W in self.blocks():
            for start in range(0, len(rows), size):
                at = slice(start, start + size)
                total[at] += block(rows[at], W, words, at).exp_().sum(-1)
        result = total.log().to(rows.dtype)
        unsafe = ~((total > _SAFE_SUM[0]) & (total < _SAFE_SUM[1]))
        for start in range(0, len(rows), size):
            at = slice(start, start + size)
            if unsafe[at].any():
                running = torch.full_like(result[at], -torch.inf)
                for words, W in self.blocks():
                    running = torch.logaddexp(running, block(rows[at], W, words, at).logsumexp(-1))
                result[at] = torch.where(unsafe[at], running, result[at])
        return result

    def blocks(self) -> Iterator[tuple[slice, Float[Tensor, "width words"]]]:
        """All classes, so many at a time: which they are, and their columns as they are stored (the factor aside).

        Columns that are converted share one buffer: they are good until the next.
        """
        step, first, buffer = self.block_sizes[1], 0, torch.empty(0)
        for matrix in self._columns.matrices:
            matrix = matrix.detach()
            for start in range(0, matrix.shape[1], step):
                W = matrix[:, start : start + step]
                if (W.dtype, W.device) != (self._dtype, self._device):
                    if buffer.shape != W.shape:
                        buffer = torch.empty_like(W, dtype=self._dtype, device=self._device)
                    W = buffer.copy_(W)
                yield slice(first + start, first + start + W.shape[1]), W
            first += matrix.shape[1]

    def _project(self, lin: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest classes"]:
        # In blocks: on a CPU, whole matrices take 1.3 to 1.5 times as long for 10 to 60 vectors (their packing).
        inside = self.inside(lin)
        rows = inside.reshape(-1, inside.shape[-1])
        result = rows.new_empty(len(rows), self.n_classes)
        for words, W in self.blocks():
            result[:, words] = rows @ W
        return result.view(*inside.shape[:-1], self.n_classes)

    def _raw(self, normed: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest classes"]:
        """Logits of all classes before the factor and the cap."""
        logits = self._project(normed)
        return logits if self._columns.bias is None else logits.add_(self._bias(slice(None)))

    def _capped(self, logits: Tensor) -> Tensor:
        logits = logits if self.factor == 1.0 else logits * self.factor
        return logits if self._soft_cap is None else torch.tanh(logits / self._soft_cap) * self._soft_cap

    def _bias(self, words: slice) -> Tensor:
        bias = self._columns.bias
        return self._cast(bias[words]) if bias is not None else torch.zeros(1, dtype=self._dtype, device=self._device)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.detach().to(device=self._device, dtype=self._dtype)


class ClosedSoftmax(Softmax):
    """A softmax over the logits of a module that can only be called: no columns, no bounds, all words at once."""

    def __init__(
        self,
        unembed: Callable[[Tensor], Tensor],
        n_classes: int,
        *,
        factor: float,
        soft_cap: float | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(Columns(()), factor=factor, soft_cap=soft_cap, dtype=dtype, device=device)
        self._unembed = unembed
        self.n_classes = n_classes

    @property
    def has_columns(self) -> bool:
        """No: the module can only be called."""
        return False

    def bs_panels(
        self, lin: Float[Tensor, "n d_model"], n_classes: int
    ) -> Iterator[tuple[slice, Float[Tensor, "n _"]]]:
        """Before-softmax values of the first classes, all at once."""
        yield slice(0, n_classes), self.bs_values(lin)[:, :n_classes]

    def bs_value(self, lin: Float[Tensor, "n d_model"], index: int) -> Float[Tensor, " n"]:
        """Before-softmax value of one class."""
        return self.bs_values(lin)[:, index].double()

    def class_logits(self, normed: Float[Tensor, "n d_model"], ids: Sequence[int]) -> Float[Tensor, "n class"]:
        """Logits of some classes."""
        return torch.cat([self.logits(rows)[:, list(ids)] for rows in normed.split(VECTOR_BLOCK)]).double()

    def log_share(
        self, normed: Float[Tensor, "n d_model"], over: Float[Tensor, " n"], without: Sequence[int] = ()
    ) -> Float[Tensor, " n"]:
        """`over` minus log Σ_t exp(z_t)."""
        pairs = zip(normed.split(VECTOR_BLOCK), over.to(normed).split(VECTOR_BLOCK), strict=True)
        everything = slice(0, self.n_classes)
        return torch.cat([z - _left_out(self.logits(rows), everything, without).logsumexp(-1) for rows, z in pairs])

    def _raw(self, normed: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest classes"]:
        return self._unembed(normed)

    def _project(self, lin: Float[Tensor, "*rest d_model"]) -> Float[Tensor, "*rest classes"]:
        return self._unembed(lin) - self._unembed(torch.zeros_like(lin))


def log_softmax(logits: Float[Tensor, "*rest classes"]) -> Float[Tensor, "*rest classes"]:
    """The log-softmax, its sum taken in float64: in float32, the probabilities of 262,144 words add up to 1 ± 8e-5."""
    return (logits - logits.double().logsumexp(-1, keepdim=True)).to(logits)


def _left_out(logits: Float[Tensor, "n classes"], words: slice, without: Sequence[int]) -> Float[Tensor, "n classes"]:
    """The logits of classes `words`, those that are left out set to −∞."""
    gone = [i - words.start for i in without if words.start <= i < words.stop]
    if gone:
        logits[:, gone] = -torch.inf
    return logits


def _dot(rows: Float[Tensor, "n d_model"], column: Float[Tensor, " d_model"]) -> Float[Tensor, " n"]:
    """Rows @ column in float64, each row summed alone, so that its bits do not depend on how many there are."""
    return (rows.double() * column.double()).sum(-1)
