r"""The training objective: corrupt a batch at random times and score the clean estimate.

    L = Σ_fields w_f · E_t [ loss_f( D(x_t, t)_f, x_0 ) ],     t ~ Beta(1, β) on the shared clock.

β > 1 spends more of training near the data, where geometry is decided. Each field's clock may drift
from the shared one, t_f = t^{exp(drift·z)}, z ~ N(0, 1), so that the trained network accepts other
schedules at inference: bonds before atoms, or all at once. Everything random is a function of
(seed, sample, step), so step k can be repeated exactly; only strata and negatives, like couplings
across a batch, depend on the other samples of it.

What else can be set has a file of its own: times (:mod:`~sciflow.objectives.curriculum`), weights
of noise levels (:mod:`~sciflow.objectives.weights`, learned in
:mod:`~sciflow.objectives.uncertainty`), given elements (:mod:`~sciflow.objectives.given`), contrast
(:mod:`~sciflow.objectives.contrast`), losses of all fields together
(:mod:`~sciflow.objectives.auxiliary`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from sciflow.denoisers import NetworkDenoiser, Prediction
from sciflow.errors import InputError
from sciflow.objectives.auxiliary import Auxiliary
from sciflow.objectives.contrast import Contrast
from sciflow.objectives.curriculum import Curriculum, TimeDistribution, stratified
from sciflow.objectives.given import GivenRule
from sciflow.objectives.uncertainty import Uncertainty
from sciflow.objectives.weights import LossWeight
from sciflow.paths import GaussianPath, Path
from sciflow.random import Draws
from sciflow.state import Context, State, field_times

__all__ = ["DenoisingObjective", "Losses"]


@dataclass(frozen=True)
class Losses:
    """Losses of a batch: ``total`` and one a field, each ``[B]``; ``t`` is the shared clock."""

    total: Tensor
    fields: dict[str, Tensor]
    t: Tensor


@dataclass(frozen=True)
class DenoisingObjective:
    """Weighted sum of the fields' losses.

    Attributes:
        weights: weight of each field, 1 where absent.
        beta: β of the time distribution Beta(1, β).
        t_min: smallest time drawn.
        drift: standard deviation of log-exponents by which a group's clock drifts.
        groups: fields that drift together; fields in no group keep the shared clock.
        drop_all: probability that a sample is trained without any condition.
        drop_each: probability with which each condition is dropped on its own.
        feedback: probability of self-conditioning on a first estimate.
        clock: another distribution of times in place of Beta(1, β), or a curriculum of them.
        stratify: spread the times of a batch evenly over the distribution.
        levels: weight of noise levels in the loss of a field; its path's own where absent.
        uncertainty: learned weights of noise levels, on top, for the fields it names.
        given: rules, by any name, that give elements to the network; together where they overlap.
        contrast: fields trained against targets of other samples.
        auxiliary: further losses of the clean estimate, by name; ``weights`` holds for them too.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    beta: float = 1.0
    t_min: float = 1e-3
    drift: float = 0.0
    groups: Sequence[Sequence[str]] = ()
    drop_all: float = 0.1
    drop_each: float = 0.0
    feedback: float = 0.5
    clock: TimeDistribution | Curriculum | None = None
    stratify: bool = False
    levels: Mapping[str, LossWeight] = field(default_factory=dict)
    uncertainty: Uncertainty | None = None
    given: Mapping[str, GivenRule] = field(default_factory=dict)
    contrast: Mapping[str, Contrast] = field(default_factory=dict)
    auxiliary: Mapping[str, Auxiliary] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.clock is not None and self.beta != 1.0:
            raise InputError(
                f"beta={self.beta} and a clock were given, which both say how times are drawn; "
                "leave beta out and give TimeDistribution(beta=...)"
            )

    def config(self) -> dict[str, Any]:
        """Plain data by which a resumed run is recognised.

        Settings that came later appear only where they are used, so that runs begun before there
        were any can still be resumed.
        """
        plain = {}
        for f in fields(self):
            value = getattr(self, f.name)
            default = f.default_factory() if f.default_factory is not MISSING else f.default
            if f.name in _FIRST_SETTINGS or value != default:
                plain[f.name] = _plain(value)
        return plain

    def names(self, denoiser: NetworkDenoiser) -> Sequence[str]:
        """What the losses are reported by: the fields, and the auxiliary losses."""
        return [*denoiser.paths, *self.auxiliary]

    def settled(self) -> Self:
        """With the last stage of its curriculum for good: what validation measures."""
        if isinstance(self.clock, Curriculum):
            return replace(self, clock=self.clock.stages[-1][1])
        return self

    def times(self, names: Sequence[str], draws: Draws, step: int,
              device: torch.device) -> dict[str, Tensor]:  # fmt: skip
        """One time a field, ``[B]``, float32; the shared clock under the key ``""``."""
        u = draws.uniform((), "objective/time", step, device=device)
        if self.stratify:
            u = stratified(u, draws, "objective/stratum", step)
        clock = self.clock or TimeDistribution(beta=self.beta)
        t = clock(u, step).clamp(self.t_min, 1.0)
        times = dict.fromkeys(["", *names], t)
        for i, group in enumerate(self.groups):
            z = draws.normal((), f"objective/drift{i}", step, device=device)
            for name in group:
                times[name] = (t ** (self.drift * z).exp()).clamp(self.t_min, 1.0)
        return times

    def drop_conditions(self, context: Context, draws: Draws, step: int) -> Context:
        """Make conditions "not asked for" at random."""
        if not context.conditions:
            return context
        device = context.mask.device
        everything = draws.uniform((), "objective/drop", step, device=device) < self.drop_all
        conditions = {}
        for name, c in context.conditions.items():
            one = draws.uniform((), f"objective/drop/{name}", step, device=device) < self.drop_each
            drop = (everything | one).reshape(-1, *(1,) * (c.ndim - 1))
            conditions[name] = torch.where(drop, torch.nan, c)
        return context.replace(conditions=conditions)

    def give(self, context: Context, draws: Draws, step: int) -> Context:
        """Mark elements as given by the rules, beside those that are given already."""
        if not self.given:
            return context
        given = dict(context.given)
        for name, rule in self.given.items():
            marks = rule(context.mask, draws, f"objective/given/{name}", step)
            for one in rule.fields:
                given[one] = given[one] | marks if one in given else marks
        return context.replace(given=given)

    def __call__(self, denoiser: NetworkDenoiser, batch: State, draws: Draws, step: int) -> Losses:
        """Losses of a clean ``batch`` at training step ``step``."""
        self._check(denoiser.paths)
        times = self.times(list(denoiser.paths), draws, step, batch.device)
        context = self.give(self.drop_conditions(batch.context, draws, step), draws, step)
        clean = State(
            {name: path.space.anchor(batch[name], context)
             for name, path in denoiser.paths.items()},
            context,
        )  # fmt: skip
        # Time 0 where an element is given: it is not corrupted, and owes no loss.
        local = field_times(times, clean)
        noisy = State(
            {
                name: path.corrupt(clean[name], local[name], context, draws,
                                   f"objective/{name}", step)
                for name, path in denoiser.paths.items()
            },
            context,
        )  # fmt: skip
        previous = None
        if denoiser.self_conditioning:
            previous = self._feedback(denoiser, noisy, local, draws, step)
        prediction = denoiser(noisy, local, previous)
        losses, parts = {}, []
        for name, path in denoiser.paths.items():
            x0, x_t, t = clean[name], noisy[name], local[name]
            loss = path.loss(prediction[name], x0, x_t, t, context)
            if name in self.contrast:
                loss = loss - self._penalty(
                    name, path, prediction[name], x0, x_t, t, context, draws, step
                )
            if name in self.levels:
                loss = loss * self.levels[name].factor(path, times[name])
            losses[name] = loss
            if self.uncertainty is not None and name in self.uncertainty.fields:
                u = self.uncertainty(name, path.level(times[name]))
                # A sample that is given altogether says nothing about its level.
                asked = path.space.sum((path.space.expand(t, x0) > 0).expand(x0.shape), context) > 0
                loss = ((-u).exp() * loss + u) * asked
            parts.append(self.weights.get(name, 1.0) * loss)
        for name, auxiliary in self.auxiliary.items():
            losses[name] = auxiliary(State(prediction.clean, context), clean, local)
            parts.append(self.weights.get(name, 1.0) * losses[name])
        return Losses(torch.stack(parts).sum(0), losses, times[""])

    def _penalty(self, name: str, path: Path, clean: Tensor, x0: Tensor, x_t: Tensor, t: Tensor,
                 context: Context, draws: Draws, step: int) -> Tensor:  # fmt: skip
        assert isinstance(path, GaussianPath)
        contrast = self.contrast[name]
        rows, has = contrast.partners(path.space.mask(context), context, draws, step)
        # The very noise that the batch was corrupted with.
        noise = path.noise(x0, context, draws, f"objective/{name}", step)
        return has * contrast.penalty(path, clean, (x0[rows], noise[rows]), x_t, t, context)

    def _check(self, paths: Mapping[str, Path]) -> None:
        named = {
            "levels": self.levels,
            "contrast": self.contrast,
            "given": [name for rule in self.given.values() for name in rule.fields],
            "uncertainty": () if self.uncertainty is None else self.uncertainty.fields,
        }
        for setting, names in named.items():
            if unknown := sorted(set(names) - set(paths)):
                raise InputError(
                    f"{setting}: there is no field {unknown[0]!r}; fields: {', '.join(paths)}"
                )
        if taken := sorted(set(self.auxiliary) & set(paths)):
            raise InputError(f"auxiliary: {taken[0]!r} is a field; give the loss another name")
        for name in self.contrast:
            if not isinstance(paths[name], GaussianPath):
                raise InputError(
                    f"contrast: field {name!r} is not Gaussian; a cross-entropy has no minimum "
                    "against negatives"
                )

    def _feedback(self, denoiser: NetworkDenoiser, noisy: State, times: dict[str, Tensor],
                  draws: Draws, step: int) -> Prediction | None:  # fmt: skip
        """With one coin a step (not a sample), so that half of the steps cost no extra pass."""
        if float(Draws(draws.seed, [0]).uniform((), "objective/feedback", step)) >= self.feedback:
            return None
        with torch.no_grad():
            return denoiser(noisy, times).detach()


_FIRST_SETTINGS = ("weights", "beta", "t_min", "drift", "groups", "drop_all", "drop_each",
                   "feedback")  # fmt: skip
"""In the record of every run, whatever their values."""


def _plain(value: Any) -> Any:
    if hasattr(value, "config"):
        return value.config()
    if is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value
