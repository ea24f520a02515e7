r"""Corruption along geodesics, and by heat: fields of angles and rotations.

Both kinds move a point on its manifold by one number c(t) that rises from 0, and both have a
probability-flow ODE of one form, in which c is the time,

    dx/dc = −F(x, c),     F = E[ F(x_t | x_0) | x_t ],     D = exp_{x_t}(c F),

with F a tangent vector at x_t of order one, which the network predicts. (In flat space F is D − ε
for the rectified schedule, and −ε for exploding variance.)

=========  =========================  ===================================  =====================
kind       c                          x_t                                  F(x_t | x_0)
=========  =========================  ===================================  =====================
flow       κ = s/(a + s)              exp_{x_0}(κ log_{x_0} x_1)           log_{x_t}(x_0)/κ
diffusion  σ = s/a, at most 8         heat kernel of variance σ² at x_0    σ ∇ log p(x_t | x_0)
=========  =========================  ===================================  =====================

Flow: x_1 is uniform (Chen & Lipman 2024; Bose et al. 2024; FrameFlow, Yim et al. 2023). Diffusion:
the heat kernel is the wrapped normal or IGSO(3), whose variances add (Jing et al. 2022; Yim et al.
2023); at σ = 8 it is uniform to 1e-13.

The clean estimate D is a point, so that guidance, self-conditioning and sampler see what they see
elsewhere. No information is lost: log_{x_t}(D) is c F again. For a flow, x_0 is never farther from
x_t than κπ, so that log_{x_t} x_0 lies in the ball of radius κπ, and so does its mean, as balls are
convex: inside the injectivity radius, where exp has the inverse log. For heat, |σ² ∇ log p| is at
most the distance to x_0: winding round the other way only pulls back. A network's vector that
leaves the ball is read as the point to which it leads, from where a loss drives it on, farther:
``bounded`` keeps it inside. On a torus all this holds angle by angle.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from sciflow.errors import InputError
from sciflow.paths.base import Path
from sciflow.random import Draws
from sciflow.schedules import Schedule
from sciflow.spaces import SO3, Torus
from sciflow.state import Context

__all__ = ["GeodesicKind", "GeodesicPath", "GeodesicPrediction"]

GeodesicKind = Literal["flow", "diffusion"]
GeodesicPrediction = Literal["tangent", "bounded", "x0"]

_WIDEST = 8.0
"""A heat kernel of this σ is uniform; more is the same, and σ = ∞ would be 0·∞."""


class GeodesicPath(Path):
    """The path of a field of angles or rotations.

    Args:
        space: :class:`~sciflow.spaces.Torus` or :class:`~sciflow.spaces.SO3`.
        schedule: sets c(t); it should end in noise alone, or nearly: a flow's x_1 is uniform for
            κ(1) = 1, a heat kernel for σ(1) of 3 or more.
        kind: flow or diffusion; see the table of the module.
        prediction: what the network's output means: ``tangent``, F at x_t in the coordinates of
            the space (``[..., 3]`` for a rotation); ``bounded``, y of F = y/√(1 + (|y|/R)²), R = π
            for a flow and π/σ for a diffusion, so that F keeps to the ball where x_0 lies (an
            angle alone, the length of a rotation's vector); or ``x0``, a clean point (any 3 × 3
            matrix for a rotation), from which F(x_t | x_0) is made as in FrameDiff.
    """

    space: Torus | SO3

    def __init__(
        self,
        space: Torus | SO3,
        schedule: Schedule,
        kind: GeodesicKind = "flow",
        prediction: GeodesicPrediction = "tangent",
    ):
        super().__init__(space, schedule)
        if not isinstance(space, Torus | SO3):
            raise InputError(
                f"a geodesic path needs a Torus or SO3, not {type(space).__name__}; flat fields "
                "take a GaussianPath"
            )
        if kind not in get_args(GeodesicKind):
            known = ", ".join(get_args(GeodesicKind))
            raise InputError(f"unknown kind of geodesic path {kind!r}; known: {known}")
        if prediction not in get_args(GeodesicPrediction):
            known = ", ".join(get_args(GeodesicPrediction))
            raise InputError(f"unknown prediction type {prediction!r}; known: {known}")
        self.kind, self.prediction = kind, prediction

    def with_schedule(self, schedule: Schedule) -> Self:
        return type(self)(self.space, schedule, self.kind, self.prediction)

    def scale(self, t: Tensor) -> Tensor:
        """c(t), any shape: κ of a flow, σ of a diffusion."""
        a, s = self.schedule(t)
        return s / (a + s) if self.kind == "flow" else (s / a).clamp(max=_WIDEST)

    def prior(self, context: Context, draws: Draws, stream: str, dtype: torch.dtype) -> Tensor:
        return self.space.noise(context, draws, stream, 0, dtype)

    def corrupt(self, x0: Tensor, t: Tensor, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        if self.kind == "diffusion":
            return self.space.diffuse(x0, self.scale(t), context, draws, stream, step)
        v = self.space.log(x0, self.space.noise(context, draws, stream, step, x0.dtype))
        return self.space.exp(x0, self.space.expand(self.scale(t), v).to(v.dtype) * v)

    def renoise(self, x: Tensor, s: float, t: float, context: Context, draws: Draws, stream: str,
                step: int = 0) -> Tensor:  # fmt: skip
        """Heat of variance σ_t² − σ_s²; a flow starts from s = 0 only.

        Raises:
            InputError: a flow from s > 0. No noise that does not know x_0 widens the uniform law
                of log_{x_0} x_s to that of x_t: on a circle its Fourier coefficients, quotients of
                two sinc, would exceed 1.
        """
        times = torch.tensor([s, t], dtype=torch.float64, device=x.device)
        if s <= 0:
            return self.corrupt(x, times[1].expand(len(x)), context, draws, stream, step)
        if self.kind == "flow":
            raise InputError(
                f"a geodesic flow cannot be noised from time {s:g} to {t:g}: it has no forward "
                "process but from clean data; restart from time 0, or train kind='diffusion'"
            )
        c = self.scale(times).tolist()
        missing = math.sqrt(max(c[1] ** 2 - c[0] ** 2, 0.0))
        return self.space.diffuse(x, times.new_tensor(missing), context, draws, stream, step)

    def network_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        return x_t

    def target(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """F(x_t | x_0), a tangent vector at x_t; any other time stands in for t = 0."""
        t = t.masked_fill(t <= 0, 0.5)
        c = self.scale(t)
        v = self.space.log(x_t, x0)
        if self.kind == "flow":
            return v / self.space.expand(c, v).to(v.dtype)
        return self.space.expand(c, v).to(v.dtype) * self.space.score(x_t, x0, c)

    def clean(self, output: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """D = exp_{x_t}(c F); an element with t = 0 is given and is its own estimate."""
        known = self.space.expand(t, x_t) <= 0
        if self.prediction == "x0":
            f = self.target(self.space.project(output, context), x_t, t)
        else:
            f = self.space.tangent(x_t, output)
            f = f.masked_fill(~self.space.expand(self.space.mask(context), f), 0)
            if self.prediction == "bounded":
                f = self._bounded(f, t)
        c = self.space.expand(self.scale(t), f).to(f.dtype)
        return torch.where(known, x_t, self.space.exp(x_t, c * f))

    def _bounded(self, y: Tensor, t: Tensor) -> Tensor:
        """F of a network's y; see ``prediction``."""
        share = y / math.pi
        if self.kind == "diffusion":
            share = share * self.space.expand(self.scale(t), y).to(y.dtype)
        square = share**2
        if isinstance(self.space, SO3):
            square = square.sum(-1, keepdim=True)
        return y / (1 + square).sqrt()

    def output(self, clean: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The F that leads to ``clean``: log_{x_t}(D)/c; any other time stands in for t = 0."""
        v = self.space.log(x_t, clean)
        return v / self.space.expand(self.scale(t.masked_fill(t <= 0, 0.5)), v).to(v.dtype)

    def loss(self, clean: Tensor, x0: Tensor, x_t: Tensor, t: Tensor, context: Context) -> Tensor:
        """Mean squared error of F a coordinate over unknown elements, ``[B]``."""
        error = (self.output(clean, x_t, t) - self.target(x0, x_t, t)) ** 2
        unknown = self.space.expand(t > 0, error).to(error.dtype)
        n = self.space.sum(torch.ones_like(error) * unknown, context).clamp(min=1)
        return self.space.sum(error * unknown, context) / n

    def extrapolate(self, x_t: Tensor, clean: Tensor, weak: Tensor, weight: float) -> Tensor:
        """exp_x(v + w (v − v_weak)), v = log_x D."""
        v, v_weak = self.space.log(x_t, clean), self.space.log(x_t, weak)
        return self.space.exp(x_t, super().extrapolate(x_t, v, v_weak, weight))

    def config(self) -> dict[str, Any]:
        return {
            "kind": f"geodesic-{self.kind}",
            "space": "so3" if isinstance(self.space, SO3) else "torus",
            "schedule": self.schedule.config(),
            "prediction": self.prediction,
        }
