r"""Guidance of backbones by their shape in space, seen through the rebuilding of the chain.

    log f(x_0) = − ½ (max(0, Rg/Rg⁰ − r)/0.05)²  −  ½ Σ_{|i−j|>2} (max(0, 4.2 Å − d_ij)/0.5 Å)²,

Rg of the CA atoms, Rg⁰ = 2.2 N^0.38 Å (the law of globular chains), d_ij between CA atoms, which
come no nearer than about 3.8 Å. f is read at the clean estimate and moves it (the mean guidance of
:class:`~sciflow.guidance.energy.training_free.TrainingFree`), so it costs no network call. Of
angles, the gradient comes through :func:`domains.proteins.rebuild.rebuild`: a loop bends so that
the helices behind it come nearer. That is what angles alone do not tell a network: a chain drawn
angle by angle is right at every place and extended as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from domains.proteins.encoding import Encoding
from sciflow.denoisers import Denoiser
from sciflow.errors import InputError
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.networks.pairs import length
from sciflow.state import State

__all__ = ["GUIDES", "ShapeEnergy", "rg_ratio", "shape_guidance"]

_RATIO_STD, _NEAREST, _NEAR_STD = 0.05, 4.2, 0.5
_MOVED = ("torsions", "positions")


def rg_ratio(ca: Tensor, mask: Tensor) -> Tensor:
    """Radius of gyration over 2.2 N^0.38 Å, ``[B]``.

    Args:
        ca: ``[B, N, 3]`` in ångström.
        mask: real residues.
    """
    real = mask[..., None].to(ca)
    n = real.sum(1).clamp(min=1)
    away = (ca - (ca * real).sum(1, keepdim=True) / n[:, None]) * real
    # 1e-6 Å²: one residue alone has a radius of 0, whose gradient is infinite.
    rg = (away.square().sum((1, 2)) / n[:, 0] + 1e-6).sqrt()
    return rg / (2.2 * n[:, 0] ** 0.38)


@dataclass(frozen=True)
class ShapeEnergy:
    """log f of the module's text, of clean states to ``[B]``.

    Attributes:
        encoding: of the model.
        ratio: r, the largest Rg/Rg⁰ that is not punished; 0 leaves the size alone.
        clash: factor on the part of clashes.
    """

    encoding: Encoding
    ratio: float = 1.05
    clash: float = 1.0

    def __call__(self, clean: State) -> Tensor:
        mask = clean.context.mask
        ca = self.encoding.backbone(clean, None)[:, :, 1]
        total = ca.new_zeros(len(ca))
        if self.ratio > 0:
            over = (rg_ratio(ca, mask) - self.ratio).clamp(min=0)
            total = total - 0.5 * (over / _RATIO_STD) ** 2
        if self.clash > 0:
            i = torch.arange(mask.shape[1], device=mask.device)
            far = (i[:, None] - i).abs() > 2
            pairs = mask[:, :, None] & mask[:, None] & far
            d = length(ca[:, :, None] - ca[:, None])
            near = ((_NEAREST - d).clamp(min=0) / _NEAR_STD) ** 2 * pairs
            total = total - 0.25 * self.clash * near.sum((1, 2))
        return total


def shape_guidance(
    denoiser: Denoiser,
    config: Mapping[str, Any],
    ratio: float = 1.05,
    clash: float = 1.0,
    *,
    strength: float = 1.0,
    iterations: int = 2,
    clip: float = 0.5,
    interval: tuple[float, float] = (0.0, 1.0),
) -> TrainingFree:
    """A model whose backbones are compact and do not run into themselves.

    Args:
        denoiser: the model.
        config: its configuration.
        ratio: largest Rg/Rg⁰; 0 leaves the size alone.
        clash: factor on clashes; 0 leaves them.
        strength: μ of the angles (or positions); 1 is Bayes' rule for the estimate's own spread.
        iterations: gradient steps a call.
        clip: largest root mean square of a gradient.
        interval: times between which it acts.

    Raises:
        InputError: nothing is asked for.
    """
    if not (ratio > 0 or clash > 0):
        raise InputError("ratio and clash are both 0: there is nothing to guide by")
    energy = ShapeEnergy(Encoding.from_config(config["encoding"]), ratio, clash)
    mu = {f: strength for f in _MOVED if f in denoiser.paths}
    return TrainingFree(denoiser, energy, mu=mu, iterations=iterations, clip=clip,
                        interval=interval)  # fmt: skip


def _shape(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return shape_guidance(
        denoiser, model.config, settings["rg_ratio"], settings["clash"],
        strength=settings["strength"], iterations=settings["iterations"], clip=settings["clip"],
        interval=(settings["first"], settings["last"]),
    )  # fmt: skip


GUIDES = {
    "shape": Guide(
        "to compact chains without clashes, by the backbone that the clean estimate builds",
        {"rg_ratio": 1.05, "clash": 1.0, "strength": 1.0, "iterations": 2, "clip": 0.5,
         "first": 0.0, "last": 1.0},
        _shape,
    ),
}  # fmt: skip
"""Guides of backbones."""
