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

from domains.proteins.closure import NEAR_STD, NEAREST, globular_radius
from domains.proteins.encoding import Encoding
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_weight
from sciflow.guidance.energy.strengths import Strength, open_variance
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.networks.pairs import length
from sciflow.paths import GeodesicPath, Path
from sciflow.state import State, Times

__all__ = ["CONTRACT", "SHAPE", "Contracted", "ShapeEnergy", "rg_ratio", "shape_guidance"]

_RATIO_STD = 0.05
_MOVED = ("torsions", "positions")
_FARTHEST = 3.1
"""Radians: just inside half a turn."""


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
    return rg / globular_radius(n[:, 0])


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
            near = ((NEAREST - d).clamp(min=0) / NEAR_STD) ** 2 * pairs
            total = total - 0.25 * self.clash * near.sum((1, 2))
        return total


def shape_guidance(
    denoiser: Denoiser,
    config: Mapping[str, Any],
    ratio: float = 1.0,
    clash: float = 1.0,
    *,
    strength: float = 2.0,
    least: float = 0.003,
    iterations: int = 8,
    clip: float = 0.5,
    interval: tuple[float, float] = (0.0, 0.7),
) -> TrainingFree:
    """A model whose backbones are compact and do not run into themselves.

    Args:
        denoiser: the model.
        config: its configuration.
        ratio: largest Rg/Rg⁰; 0 leaves the size alone.
        clash: factor on clashes; 0 leaves them.
        strength: μ of the angles (or positions); 1 is Bayes' rule for the estimate's own spread.
        least: spread V that an estimate is taken to have at least. V vanishes with the noise, and
            two residues that touch at the end would stay so; but long levers take small steps.
        iterations: gradient steps a call.
        clip: largest root mean square of a gradient.
        interval: times between which it acts.

    Raises:
        InputError: nothing is asked for.
    """
    if not (ratio > 0 or clash > 0):
        raise InputError("ratio and clash are both 0: there is nothing to guide by")
    energy = ShapeEnergy(Encoding.from_config(config["encoding"]), ratio, clash)
    mu = {f: _at_least(p, strength, least) for f, p in denoiser.paths.items() if f in _MOVED}
    return TrainingFree(denoiser, energy, mu=mu, iterations=iterations, clip=clip,
                        interval=interval)  # fmt: skip


class Contracted(Denoiser):
    """Torsions and rotations run to their estimate faster than the flow: exp_x((1 + w) log_x D).

    Samples of lower temperature: nearer to the modes, less varied. FrameFlow (Yim et al. 2023) does
    the same to rotations by its inference schedule, and scales noise down where it is stochastic.

    Args:
        denoiser: the model.
        weight: w; 0 is the flow itself.
    """

    def __init__(self, denoiser: Denoiser, weight: float):
        super().__init__()
        check_weight(weight)
        self.denoiser, self.paths, self.weight = denoiser, denoiser.paths, weight

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        prediction = self.denoiser(state, t, previous)
        if self.weight == 0:
            return prediction
        clean = dict(prediction.clean)
        for name, path in self.paths.items():
            if isinstance(path, GeodesicPath):
                v = path.space.log(state[name], clean[name])
                far = (1 + self.weight) * v
                # Not past the far side of the circle, where it would come round again.
                clean[name] = path.space.exp(state[name], far.clamp(-_FARTHEST, _FARTHEST))
        return Prediction(clean)


def _contracted(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return Contracted(denoiser, settings["weight"])


def _at_least(path: Path, strength: float, least: float) -> Strength:
    def at(t: Tensor) -> Tensor:
        return strength * (least / open_variance(path, t)).clamp(min=1)

    return at if least > 0 else strength


def _shape(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    return shape_guidance(
        denoiser, model.config, settings["rg_ratio"], settings["clash"],
        strength=settings["strength"], least=settings["least"],
        iterations=settings["iterations"], clip=settings["clip"],
        interval=(settings["first"], settings["last"]),
    )  # fmt: skip


CONTRACT = Guide(
    "torsions and rotations run to their estimate faster: lower temperature, more structure",
    {"weight": 0.3},
    _contracted,
)
SHAPE = Guide(
    "to compact chains without clashes, by the backbone that the clean estimate builds",
    {"rg_ratio": 0.95, "clash": 3.0, "strength": 2.0, "least": 0.003, "iterations": 12,
     "clip": 0.5, "first": 0.0, "last": 0.7},
    _shape,
)  # fmt: skip
