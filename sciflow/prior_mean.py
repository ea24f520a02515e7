r"""A prior mean: what is known of the answer before denoising, and may move with the condition.

A regression, a forecast of yesterday, a template or a coarse solution μ(context) can enter a
diffusion model in two ways, and the network then sees

    kind "noise":     x_t = a x_0 + s (μ + ε),        D = c_x x_t + c_F F,
    kind "residual":  r_t = a (x_0 − μ) + s ε,        D = μ + c_x r_t + c_F F,

noise centred at μ (data-dependent sources of flow matching; Lee et al. 2022, PriorGrad), or a model
of what μ leaves unexplained (Mardani et al. 2023, CorrDiff). Both are shifts of one process,

    y_t = a x_0 + s ε = x_t − s μ = r_t + a μ,

and E[x_0 | ·] is the same function of any of them. So the state that samplers, guidance and
likelihoods hold is y_t, and μ is preconditioning: it is added where the network looks and nowhere
else. Every method that serves a plain model serves this one, stochastic ones too, whose fresh noise
must not carry μ again; and two models whose means differ (a condition and its absence in
classifier-free guidance) can be combined, for they share y_t. In velocity coordinates μ is a
constant velocity, which every solver integrates exactly: nothing is lost by the choice.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor, nn

from sciflow.denoisers import Network, NetworkDenoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import GaussianPath, Path
from sciflow.state import Context, State, Times, field_times

__all__ = ["Mean", "MeanKind", "PriorMeanDenoiser"]

Mean = Tensor | str | Callable[[Context], Tensor] | nn.Module
"""A constant (one sample's, or ``[B, ...]``), an entry of ``context.extras``, or a function of the
context; a module is learned."""
MeanKind = Literal["noise", "residual"]


class PriorMeanDenoiser(NetworkDenoiser):
    """A network that sees its fields relative to a prior mean; see the module's text.

    A mean that is a module becomes part of the network (``network.prior_means``): it is trained,
    averaged and saved with it. Under classifier-free guidance a mean is asked for contexts whose
    conditions are NaN too, and has to answer with numbers.

    Args:
        network: see :class:`~sciflow.denoisers.Network`.
        paths: one a field. ``data_std`` of a path is the standard deviation of what remains:
            of x_0 − μ for "residual".
        means: μ of each field that has one, shaped as the field (or broadcast to it).
        kind: ``noise`` or ``residual``.
        self_conditioning: hand the network its own last estimate.

    Raises:
        InputError: a mean belongs to no continuous field.
    """

    def __init__(
        self,
        network: Network,
        paths: Mapping[str, Path],
        means: Mapping[str, Mean],
        kind: MeanKind = "noise",
        self_conditioning: bool = False,
    ):
        super().__init__(network, paths, self_conditioning)
        if kind not in get_args(MeanKind):
            raise InputError(
                f"unknown kind of prior mean {kind!r}; known: {', '.join(get_args(MeanKind))}"
            )
        for name in means:
            if not isinstance(self.paths.get(name), GaussianPath):
                fields = [n for n, p in self.paths.items() if isinstance(p, GaussianPath)]
                raise InputError(
                    f"a prior mean of {name!r}, which is no continuous field; those are: "
                    f"{', '.join(fields)}"
                )
        learned = {name: mean for name, mean in means.items() if isinstance(mean, nn.Module)}
        if learned:
            network.prior_means = nn.ModuleDict(learned)
        self.means, self.kind = dict(means), kind
        self.learned = frozenset(learned)
        # What signal a schedule keeps at t = 1 is that of the mean.
        self.paths = {n: self._around(n, p) if n in means else p for n, p in self.paths.items()}

    def mean(self, name: str, context: Context, like: Tensor) -> Tensor:
        """μ of a field as a legal value of its space, shaped and typed as ``like``."""
        source = self.means[name]
        if name in self.learned:
            value = cast(nn.ModuleDict, self.network.prior_means)[name](context)
        elif isinstance(source, str):
            if source not in context.extras:
                known = ", ".join(context.extras) or "none"
                raise InputError(
                    f"the prior mean of {name!r} is context.extras[{source!r}], which is missing; "
                    f"given: {known}"
                )
            value = context.extras[source]
        else:
            value = source if isinstance(source, Tensor) else source(context)
        try:
            value = value.to(like).expand_as(like)
        except RuntimeError:
            raise InputError(
                f"the prior mean of {name!r} is {list(value.shape)}, which cannot be broadcast to "
                f"the field, {list(like.shape)}"
            ) from None
        return self.paths[name].space.project(value, context)

    def seen(self, state: State, t: Times | float) -> State:
        """The fields as the network sees them: x_t or r_t in place of y_t."""
        times, fields = field_times(t, state), dict(state.fields)
        for name in self.means:
            path, y = self.paths[name], state[name]
            a, s = (path.space.expand(c, y).to(y.dtype) for c in path.schedule(times[name]))
            mean = self.mean(name, state.context, y)
            fields[name] = y + s * mean if self.kind == "noise" else y - a * mean
        return State(fields, state.context)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        seen = self.seen(state, t)
        if self.kind == "noise":
            return super().forward(seen, t, previous)
        means = {name: self.mean(name, state.context, state[name]) for name in self.means}
        if previous is not None:
            previous = Prediction(
                {n: x - means[n] if n in means else x for n, x in previous.clean.items()}
            )
        prediction = super().forward(seen, t, previous)
        times, clean = field_times(t, state), dict(prediction.clean)
        for name, mean in means.items():
            # A given element is its own estimate, to the last bit.
            known = self.paths[name].space.expand(times[name], mean) <= 0
            clean[name] = torch.where(known, state[name], clean[name] + mean)
        return Prediction(clean)

    def _around(self, name: str, path: Path) -> Path:
        path = copy.copy(path)
        assert isinstance(path, GaussianPath)
        path.data_mean = partial(self.mean, name)
        return path

    def remake(
        self, network: Network | None = None, paths: Mapping[str, Path] | None = None
    ) -> PriorMeanDenoiser:
        network = network or self.network
        means = dict(self.means)
        if self.learned:
            means |= dict(cast(nn.ModuleDict, network.prior_means).items())
        return type(self)(network, paths or self.paths, means, self.kind, self.self_conditioning)
