r"""Rules: what is done with the difference Δ = D − D_weak beside adding w Δ.

With y the quantity that a rule looks at, strong (c) and weak (u), and γ = 1 + w:

==============  ========  ====================================================================
rule            y         formula
==============  ========  ====================================================================
(none)          D         c + w (c − u)                                   (Ho & Salimans 2022)
Tangential      ε         c + w (c − u'), u' = u projected onto the first right singular
                          vector of [c; u]                            (TCFG, Kwon et al. 2025)
ZeroStar        velocity  c + w (c − ς u), ς = ⟨c, u⟩/|u|²; 0 in the first steps
                                                                  (CFG-Zero*, Fan et al. 2025)
Rescale         D         g = c + w (c − u);  φ g std(c)/std(g) + (1 − φ) g (Lin et al. 2024)
Orthogonal      D         Δ_n ← Δ_n + β Δ_{n−1}, |Δ| cut at r, c + w (Δ_⊥ + η Δ_∥), parallel
                          and orthogonal to c                         (APG, Sadat et al. 2024)
FrequencySplit  D         c + w (l Δ_low + h Δ_high)            (FreSca, Huang et al. 2025;
                          FDG, Sadat et al. 2025, with two bands)
==============  ========  ====================================================================

CFG++ is another: :mod:`sciflow.guidance.weak.plus_plus`. Norms, means and products are of one
sample, over its real, unknown elements: neither companions, nor padding, nor given elements count.
ε is taken as x − a D, the velocity of z = x/(a + s) in u = s/(a + s) as x − (a + s) D: both times
s, which no formula above notices and which is 0, not 0/0, at given elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths import GaussianPath, Path
from sciflow.spaces import RandomField, ZeroCoM
from sciflow.state import Context

__all__ = [
    "FrequencySplit",
    "Orthogonal",
    "Rescale",
    "Rule",
    "Seen",
    "Tangential",
    "ZeroStar",
]


@dataclass(frozen=True)
class Seen:
    """One Gaussian field of a batch as a rule sees it.

    Attributes:
        path: of the field.
        x: x_t, ``[B, ...]``.
        strong: D, shaped as x.
        weak: D_weak.
        t: ``[B]`` or one an element, 0 where given.
        context: mask.
    """

    path: GaussianPath
    x: Tensor
    strong: Tensor
    weak: Tensor
    t: Tensor
    context: Context

    def scales(self) -> tuple[Tensor, Tensor]:
        """(a, s), shaped to multiply x."""
        a, s = self.path.schedule(self.t)
        return self.like(a), self.like(s)

    def like(self, value: Tensor) -> Tensor:
        """A number a sample (or an element), shaped to multiply x."""
        return self.path.space.expand(value, self.x).to(self.x.dtype)

    def sum(self, q: Tensor) -> Tensor:
        """Over real, unknown elements, ``[B]``."""
        return self.path.space.sum(q * self.like(self.t > 0), self.context)

    def dot(self, u: Tensor, v: Tensor) -> Tensor:
        """⟨u, v⟩ of each sample, ``[B]``."""
        return self.sum(u * v)

    def count(self) -> Tensor:
        """Unknown numbers of each sample, at least 1, ``[B]``."""
        return self.sum(torch.ones_like(self.x)).clamp(min=1)


class Rule(ABC):
    """What becomes of a strong and a weak estimate.

    Attributes:
        momentum: β, how much of the last call's difference is added to this one's. The running
            difference comes to the rule as ``strong − weak``.
    """

    momentum: float = 0.0

    @abstractmethod
    def __call__(self, seen: Seen, weight: float) -> Tensor:
        """The guided clean estimate for a weight other than 0."""

    def check(self, paths: Mapping[str, Path]) -> None:
        """Refuse a model that has no field for this rule.

        Raises:
            InputError: no field of a Gaussian path.
        """
        if not any(isinstance(p, GaussianPath) for p in paths.values()):
            raise InputError(
                f"{type(self).__name__} is for fields of Gaussian paths, of which this model has "
                f"none among {', '.join(paths)}; leave the rule out"
            )


class Tangential(Rule):
    """TCFG: what the weak noise has beside the direction that both share is dropped."""

    def __call__(self, seen: Seen, weight: float) -> Tensor:
        a, _ = seen.scales()
        c, u = seen.x - a * seen.strong, seen.x - a * seen.weak
        cc, cu, uu = seen.dot(c, c), seen.dot(c, u), seen.dot(u, u)
        # The first right singular vector v = cos c + sin u, from the Gram matrix of the rows.
        angle = torch.atan2(2 * cu, cc - uu) / 2
        cos, sin = angle.cos(), angle.sin()
        v = seen.like(cos) * c + seen.like(sin) * u
        vv = seen.dot(v, v).clamp(min=torch.finfo(v.dtype).tiny)
        # D moves by (u − u')/a. In noise c ≈ u ≈ x and a ≈ 0; but c − u = −a Δ with Δ the
        # difference of clean estimates, so that u − u' = a Δ_⊥ cos/(cos + sin), and a cancels.
        difference = seen.strong - seen.weak
        across = difference - seen.like(seen.dot(difference, v) / vv) * v
        alike = cos + sin > 0.5
        near = seen.like(cos / (cos + sin).where(alike, 1.0)) * across
        far = (u - seen.like(seen.dot(u, v) / vv) * v) / a.clamp(min=torch.finfo(v.dtype).tiny)
        damped = seen.weak + torch.where(seen.path.space.expand(alike, v), near, far)
        return torch.add(seen.strong, seen.strong - damped, alpha=weight)


@dataclass(frozen=True)
class ZeroStar(Rule):
    """CFG-Zero*: the weak velocity is scaled to fit; early on the sample may stand still.

    Attributes:
        still_from: from this time of the field's clock on the velocity is 0, x/(a + s) does not
            move. 1 is the first call of a run (the published choice is the first 4 % of them);
            ``None`` is never.
    """

    still_from: float | None = None

    def __post_init__(self) -> None:
        if self.still_from is not None and not 0 < self.still_from <= 1:
            raise InputError(f"still_from is a time above 0 and up to 1, not {self.still_from}")

    def __call__(self, seen: Seen, weight: float) -> Tensor:
        a, s = seen.scales()
        k = a + s
        c, u = seen.x - k * seen.strong, seen.x - k * seen.weak
        fit = seen.dot(c, u) / seen.dot(u, u).clamp(min=torch.finfo(u.dtype).tiny)
        y = torch.add(c, c - seen.like(fit) * u, alpha=weight)
        if self.still_from is not None:
            y = y.masked_fill(seen.path.space.expand(seen.t >= self.still_from, y), 0)
        return (seen.x - y) / k


@dataclass(frozen=True)
class Rescale(Rule):
    """The spread of the guided estimate is brought back to that of the strong one.

    The paper does so with what its network puts out ("v"); here it is the clean estimate.

    Attributes:
        phi: φ from 0 (not at all) to 1 (all the way); 0.7 is published.
    """

    phi: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.phi <= 1:
            raise InputError(f"phi must lie between 0 (no rescaling) and 1, not {self.phi}")

    def __call__(self, seen: Seen, weight: float) -> Tensor:
        guided = torch.add(seen.strong, seen.strong - seen.weak, alpha=weight)
        before, after = self._variance(seen, seen.strong), self._variance(seen, guided)
        ratio = torch.where(after > 0, before / after.where(after > 0, 1.0), 1.0).sqrt()
        return guided * seen.like(1 + self.phi * (ratio - 1))

    def _variance(self, seen: Seen, y: Tensor) -> Tensor:
        n = seen.count()
        return seen.sum((y - seen.like(seen.sum(y) / n)) ** 2) / n


@dataclass(frozen=True)
class Orthogonal(Rule):
    """APG: the part of the difference along the estimate itself, which oversaturates, is damped.

    Attributes:
        parallel: η, the share of the parallel part that is kept; 1 is all.
        cap: r, the largest difference, as a root mean square over the sample's numbers (the
            published r is that times √d); ``None`` is any.
        momentum: β; negative pushes away from where guidance pushed before, −0.75 to −0.5 are
            published.
    """

    parallel: float = 0.0
    cap: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if self.cap is not None and not self.cap > 0:
            raise InputError(f"the cap of a difference must be above 0, not {self.cap}")
        if not -1 < self.momentum < 1:
            raise InputError(f"momentum must lie between -1 and 1, not {self.momentum}")

    def __call__(self, seen: Seen, weight: float) -> Tensor:
        difference = seen.strong - seen.weak
        if self.cap is not None:
            size = (seen.dot(difference, difference) / seen.count()).sqrt()
            difference = difference * seen.like((self.cap / size).clamp(max=1))
        if self.parallel != 1:
            d = seen.strong
            along = seen.dot(difference, d) / seen.dot(d, d).clamp(min=torch.finfo(d.dtype).tiny)
            difference = difference + (self.parallel - 1) * seen.like(along) * d
        return torch.add(seen.strong, difference, alpha=weight)


@dataclass(frozen=True)
class FrequencySplit(Rule):
    """Coarse and fine parts of the difference have weights of their own, for series and grids.

    A discrete Fourier transform over the axes of elements: of each series over its own length,
    padding left out; of a grid over all of it, holes (which hold 0) included.

    Attributes:
        low: factor on w for frequencies up to the cutoff.
        high: factor on w above it.
        cutoff: in cycles an element, radial; ½ is the finest along an axis.
    """

    low: float = 1.0
    high: float = 1.0
    cutoff: float = 0.1

    def __post_init__(self) -> None:
        if not self.cutoff >= 0:
            raise InputError(f"a cutoff is a frequency in cycles an element, not {self.cutoff}")

    def check(self, paths: Mapping[str, Path]) -> None:
        """Refuse fields whose elements have no order."""
        super().check(paths)
        for name, path in paths.items():
            if not isinstance(path, GaussianPath):
                continue
            space = path.space
            if isinstance(space, ZeroCoM) or (isinstance(space, RandomField) and space.points):
                raise InputError(
                    f"field {name!r} is a set of points in no order: it has no frequencies; "
                    "FrequencySplit is for series and fields on a grid"
                )

    def __call__(self, seen: Seen, weight: float) -> Tensor:
        difference = (seen.strong - seen.weak) * seen.like(seen.t > 0)
        mask = seen.path.space.mask(seen.context)
        axes = mask.ndim - 1
        if axes > 1 or isinstance(seen.path.space, RandomField):
            coarse = self._coarse(difference, axes)
        else:
            lengths = mask.sum(1)
            if not torch.equal(mask, torch.arange(mask.shape[1], device=mask.device)
                               < lengths[:, None]):  # fmt: skip
                raise InputError("the frequencies of a series need its padding to be at its end")
            coarse = torch.zeros_like(difference)
            for n in lengths.unique().tolist():
                if n > 0:
                    rows = lengths == n
                    coarse[rows, :n] = self._coarse(difference[rows, :n], 1)
        mixed = self.high * difference + (self.low - self.high) * coarse
        return torch.add(seen.strong, mixed, alpha=weight)

    def _coarse(self, y: Tensor, axes: int) -> Tensor:
        """``y [B, *elements, ...]`` without its frequencies above the cutoff."""
        dims, sizes = list(range(1, 1 + axes)), y.shape[1 : 1 + axes]
        square = torch.zeros((), dtype=y.dtype, device=y.device)
        for k, n in enumerate(sizes):
            frequencies = torch.fft.rfftfreq if k == axes - 1 else torch.fft.fftfreq
            f = frequencies(n, dtype=y.dtype, device=y.device)
            square = square[..., None] + f**2
        kept = square <= self.cutoff**2
        kept = kept.reshape(1, *kept.shape, *(1,) * (y.ndim - 1 - axes))
        return torch.fft.irfftn(torch.fft.rfftn(y, dim=dims) * kept, s=sizes, dim=dims)
