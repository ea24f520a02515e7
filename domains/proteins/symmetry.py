r"""Symmetric oligomers: n copies of one chain about an axis, by guidance of a model of frames.

Copy k of residue j lies at Q^k x_j and is turned as Q^k R_j, Q the rotation by 2π/n about z. The
model is shown the first copy n times over, so that its input has the symmetry at every noise level,
and its estimate is made symmetric too,

    x_{k,j} ← Q^k (1/n) Σ_c Q^{−c} x_{c,j},        R_{k,j} ← Q^k polar(1/n Σ_c Q^{−c} R_{c,j}),

the nearest symmetric one. An equivariant network answers a symmetric chain with a symmetric one, up
to where the copies stand in its numbering (cf. Watson et al. 2023, RFdiffusion). Copies are held
together, and apart, by an energy between the CA atoms of neighbouring copies,

    log f = −½ Σ [(max(0, m − C)/2)²  +  c Σ (max(0, 5 Å − d)/0.5 Å)²],    C = Σ 1/(1 + (d/8 Å)⁶),

over all interfaces, m the contacts wanted of each, C those there are, counted softly, so that
distant chains feel it too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from domains.proteins.chain import Chain
from domains.proteins.encoding import Encoding, empty_context
from domains.proteins.scaffolding import BREAK, numbered_apart
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.energy.training_free import TrainingFree
from sciflow.guides import Guide
from sciflow.model import Model
from sciflow.networks.pairs import length
from sciflow.random import Draws
from sciflow.samplers.hooks import Step, after_inner
from sciflow.state import Context, State, Times
from sciflow.tasks import Beginning, Task

__all__ = ["SYMMETRY", "InterfaceEnergy", "Oligomers", "Symmetric", "parse_symmetry"]

_MOST = 12
_REACH, _NEAREST, _NEAR_STD, _CONTACT_STD = 8.0, 5.0, 0.5, 2.0


def parse_symmetry(text: Any) -> int:
    """n of "C3".

    Raises:
        InputError: another form, or fewer than 2 or more than 12 copies.
    """
    match = re.fullmatch(r"[Cc](\d+)", str(text).strip())
    if match is None or not 2 <= int(match[1]) <= _MOST:
        raise InputError(f"--symmetry {text}: write C and the number of copies, C2 to C{_MOST}")
    return int(match[1])


def turns(order: int, like: Tensor) -> Tensor:
    """Q^k for k = 0 … n − 1, ``[n, 3, 3]``."""
    angle = 2 * math.pi / order * torch.arange(order, dtype=torch.float64)
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero, zero, zero, one)
    return torch.stack(rows, -1).unflatten(-1, (3, 3)).to(like)


@dataclass(frozen=True)
class _Copies:
    """Where copies stand in a batch: residue r is number ``unit`` of copy ``own``."""

    order: int
    own: Tensor
    unit: Tensor
    size: Tensor
    mask: Tensor

    @classmethod
    def of(cls, context: Context, order: int) -> _Copies:
        size = context.lengths[:, None] // order
        if bool((size * order != context.lengths[:, None]).any()):
            raise InputError(
                f"a chain of {int(context.lengths.max())} residues has not {order} equal copies; "
                f"ask for --symmetry C{order}, with --length of one copy"
            )
        r = torch.arange(context.mask.shape[1], device=context.mask.device).expand(len(size), -1)
        size = size.clamp(min=1)
        return cls(order, (r // size).clamp(max=order - 1), r % size, size, context.mask)

    def image(self, x: Tensor, copy: int) -> Tensor:
        """Of every residue r the value that copy ``copy`` has for it: Q^{own − copy} x.

        Padding is as it was.
        """
        at = (copy * self.size + self.unit).clamp(max=x.shape[1] - 1)
        at = at.reshape(*at.shape, *(1,) * (x.ndim - 2)).expand_as(x)
        q = turns(self.order, x)[(self.own - copy) % self.order]
        there = x.gather(1, at)
        there = q @ there if x.ndim == 4 else (q @ there[..., None])[..., 0]
        return torch.where(self.mask.reshape(*self.mask.shape, *(1,) * (x.ndim - 2)), there, x)


class Symmetric(Denoiser):
    """A model of frames whose estimates, and finished samples, have the symmetry Cₙ.

    Args:
        denoiser: the model, guided or not, of positions and rotations.
        order: n.

    Raises:
        InputError: the model has no positions, or n is out of its range.
    """

    def __init__(self, denoiser: Denoiser, order: int):
        super().__init__()
        if "positions" not in denoiser.paths:
            raise InputError("symmetry is one of chains in space; use a model of frames")
        if not 2 <= order <= _MOST:
            raise InputError(f"a symmetry has 2 to {_MOST} copies, not {order}")
        self.denoiser, self.paths, self.order = denoiser, denoiser.paths, order

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The nearest symmetric estimate."""
        copies = _Copies.of(state.context, self.order)
        clean = self.denoiser(self._repeated(state, copies), t, previous).clean
        moved = {}
        for name, x in clean.items():
            mean = torch.stack([copies.image(x, c) for c in range(self.order)]).mean(0)
            if name == "rotations":
                mean = self.paths[name].space.project(mean, state.context)
            moved[name] = _centred(mean, state.context) if name == "positions" else mean
        return Prediction(moved)

    def after_step(self, step: Step) -> State:
        """The finished sample is n copies of its first, after the guided model's own hook."""
        step = after_inner(self.denoiser, step)
        if step.end > 0:
            return step.state
        return self._repeated(step.state, _Copies.of(step.state.context, self.order))

    def _repeated(self, state: State, copies: _Copies) -> State:
        fields = {f: copies.image(x, 0) for f, x in state.items()}
        return state.replace(**{f: _centred(x, state.context) if f == "positions" else x
                                for f, x in fields.items()})  # fmt: skip


def _centred(x: Tensor, context: Context) -> Tensor:
    """Along the axis; across it the copies of anything are centred."""
    real = context.mask[..., None].to(x)
    height = (x * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
    return (x - height * x.new_tensor([0.0, 0.0, 1.0])) * real


@dataclass(frozen=True)
class InterfaceEnergy:
    """log f of the module's text, of clean states to ``[B]``.

    Attributes:
        encoding: of the model.
        order: n.
        contacts: m.
        clash: c.
    """

    encoding: Encoding
    order: int
    contacts: float = 12.0
    clash: float = 1.0

    def __call__(self, clean: State) -> Tensor:
        mask, copies = clean.context.mask, _Copies.of(clean.context, self.order)
        ca = clean["positions"] * self.encoding.scale
        following = (copies.own[:, :, None] + 1) % self.order == copies.own[:, None]
        pairs = following & mask[:, :, None] & mask[:, None]
        # Of two copies each follows the other, and they have one interface.
        interfaces = self.order if self.order > 2 else 1
        d = length(ca[:, :, None] - ca[:, None])
        there = ((1 + (d / _REACH) ** 6).reciprocal() * pairs).sum((1, 2))
        missing = (self.contacts - there / self.order).clamp(min=0) / _CONTACT_STD
        near = ((_NEAREST - d).clamp(min=0) / _NEAR_STD * pairs).square().sum((1, 2)) / self.order
        return -0.5 * interfaces * (missing**2 + self.clash * near)


class Oligomers(Task):
    """n chains of one length about an axis.

    Args:
        model: that is to sample.
        order: n.
        sizes: context of single chains of the samples of some draws: lengths and conditions.
    """

    def __init__(self, model: Model, order: int, sizes: Callable[[Draws], Context]):
        self.encoding = Encoding.from_config(model.config["encoding"])
        if "positions" not in self.encoding.fields:
            raise InputError("symmetry is one of chains in space; use a model of frames")
        self.order, self.sizes = order, sizes

    def begin(self, draws: Draws) -> Beginning:
        """All copies as one row, numbered far apart; see :class:`sciflow.tasks.Task`."""
        one = self.sizes(draws)
        context = empty_context(self.order * one.lengths, one.conditions)
        index = torch.arange(context.mask.shape[1]).repeat(len(context), 1)
        index = index + BREAK * _Copies.of(context, self.order).own
        return Beginning(context.replace(extras={"index": index}))

    def guided(self, run: Model, denoiser: Denoiser) -> Denoiser:
        """Symmetric; a guide ``symmetry`` of the user's own does it instead."""
        if run.has_guide("symmetry"):
            return denoiser
        return SYMMETRY.wrap(run, {**SYMMETRY.settings, "order": self.order}, denoiser)

    def finish(
        self, records: Sequence[Chain], draws: Draws
    ) -> list[tuple[Chain, Mapping[str, float]]]:
        """Chains numbered apart; ``contacts``, pairs of CA within 8 Å of neighbouring copies."""
        return [self._apart(chain) for chain in records]

    def _apart(self, chain: Chain) -> tuple[Chain, dict[str, float]]:
        copies = np.repeat(np.arange(self.order), len(chain) // self.order)
        ends = np.diff(copies) != 0
        joints = chain.joints if np.isfinite(chain.backbone).all() else np.zeros(len(ends), bool)
        first, second = chain.ca[copies == 0], chain.ca[copies == 1]
        d = np.linalg.norm(first[:, None] - second[None], axis=-1)
        told = {"chains": float(self.order), "contacts": float((d < _REACH).sum())}
        ids = numbered_apart(copies)
        return chain.replace(
            backbone=chain.backbone, residue_ids=ids, breaks=joints | ends,
            name=f"C{self.order}", properties=told,
        ), told  # fmt: skip


def _symmetry(model: Model, settings: dict[str, Any], denoiser: Denoiser) -> Denoiser:
    order = settings["order"]
    if settings["strength"] > 0 and "positions" in denoiser.paths:
        energy = InterfaceEnergy(Encoding.from_config(model.config["encoding"]), order,
                                 settings["contacts"], settings["clash"])  # fmt: skip
        denoiser = TrainingFree(denoiser, energy, mu={"positions": settings["strength"]},
                                iterations=settings["iterations"], clip=0.5)  # fmt: skip
    return Symmetric(denoiser, order)


SYMMETRY = Guide(
    "n copies of one chain about an axis, in touch and not in each other; for models of frames",
    {"order": 2, "contacts": 12.0, "clash": 1.0, "strength": 1.0, "iterations": 4},
    _symmetry,
)
"""On by itself under ``--symmetry``; named to change its settings."""
