r"""Guidance by a weak estimate: move away from what a worse, or worse informed, model believes.

    D_w = D + w (D − D_weak),      log p_w = log p + w (log p − log p_weak)     for tokens,

and on a manifold as for means, in the tangent space at x (:meth:`Path.extrapolate`). The convention
is the same everywhere: w = 0 is the model itself, bit for bit and at one call a step. Papers that
write D_weak + γ (D − D_weak) have γ = 1 + w.

What differs between methods is who the weak one is:

==============================================  ==============================================
method                                          weak denoiser
==============================================  ==============================================
classifier-free (Ho & Salimans 2022)            the same model, conditions not asked for
negative conditions                             the same model, asked for what is not wanted
autoguidance (Karras et al. 2024)               a smaller or less trained model
a prior of another model                        any unconditional model of the same fields
independent conditions (Sadat et al. 2024)      the same model, conditions drawn at random
time-step guidance (Sadat et al. 2024)          the same model, told a wrong time
perturbed attention, smoothed energy,           the same network with attention broken
shuffled tokens
==============================================  ==============================================

Those made from the model are in :mod:`sciflow.guidance.weak.estimates` and
:mod:`sciflow.guidance.weak.perturbed`. What is done with the difference is a rule
(:mod:`sciflow.guidance.weak.rules`); the default is the formula above.

Several weak models, each with its weight, act as one: D + Σ w_k (D − D_k) = D + W (D − D̄) with
W = Σ w_k and D̄ the weighted mean of the D_k (of their log-probabilities, or tangent vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.acting import check_interval, check_weight
from sciflow.guidance.weak.rules import Rule, Seen
from sciflow.paths import GaussianPath, Path
from sciflow.state import State, Times, field_times

__all__ = ["MoveAway", "Weight", "logsnr_interval"]

Weight = float | Callable[[float], float]
"""w, or a function of the time of the shared clock (0 data, 1 noise)."""


@dataclass(frozen=True)
class _Remembering(Prediction):
    """A prediction that carries the running differences of a rule with momentum to the next call.

    So the denoiser itself has no memory: runs, samples and particles cannot meet in it.
    """

    differences: dict[str, Tensor] = field(default_factory=dict)

    def detach(self) -> _Remembering:
        clean = super().detach().clean
        return _Remembering(clean, {f: x.detach() for f, x in self.differences.items()})

    def index(self, rows: Tensor) -> _Remembering:
        return _Remembering(*_rows((self.clean, self.differences), rows))


class MoveAway(Denoiser):
    """A denoiser that moves away from one weak denoiser, or several.

    ``calls`` counts the evaluations of all of them, and what those that count their own calls ask
    for; see :meth:`extra_calls`.

    Args:
        denoiser: the model, guided or not.
        weak: the weak model, with the same fields on the same schedules; or a list of them.
        weight: w ≥ 0 or a function of the time, for all or a list of one each.
        interval: times (first, last) of the shared clock between which guidance acts (Kynkäänniemi
            et al. 2024).
        logsnr: instead of it, the least and largest log(a/s) of the first continuous field.
        rule: what is done with the difference in fields of Gaussian paths; default the formula.
            Tokens and points of manifolds always follow the formula.

    Raises:
        InputError: a weight, interval or weak model that cannot be used.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        weak: Denoiser | Sequence[Denoiser],
        weight: Weight | Sequence[Weight],
        interval: tuple[float, float] = (0.0, 1.0),
        *,
        logsnr: tuple[float, float] | None = None,
        rule: Rule | None = None,
    ):
        super().__init__()
        self.denoiser, self.paths = denoiser, denoiser.paths
        several = [weak] if isinstance(weak, Denoiser) else list(weak)
        weights = list(weight) if isinstance(weight, Sequence) else [weight] * len(several)
        if not several or len(weights) != len(several):
            raise InputError(f"{len(weights)} weights for {len(several)} weak models: one each")
        for w in weights:
            if not callable(w):
                check_weight(w)
        for other in several:
            _check_paths(self.paths, other.paths)
        self.weights = weights
        if logsnr is not None:
            if interval != (0.0, 1.0):
                raise InputError("give interval or logsnr, not both")
            interval = logsnr_interval(self.paths, *logsnr)
        check_interval(interval)
        # The model and its weak self share parameters; those of another model are part of this one.
        self.weak = torch.nn.ModuleList(several)
        self.interval, self.rule, self.calls = interval, rule, 0
        if rule is not None:
            rule.check(self.paths)

    def extra_calls(self, times: Iterable[float]) -> int:
        """Network calls beside those of the denoiser itself, when it is called at ``times``."""
        return sum(sum(w != 0 for w in self._weights_at(t)) for t in times)

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The moved estimate."""
        strong = self._ask(self.denoiser, state, t, previous)
        past = self._past(previous)
        groups = self._groups(t)
        used = [k for k in range(len(self.weak)) if any(ws[k] != 0 for ws, _ in groups)]
        if not used:
            return strong if past is None else _Remembering(strong.clean, past)
        weak = {k: self._ask(self.weak[k], state, t, previous).clean for k in used}
        times = field_times(t, state)
        whole = (strong.clean, weak, times, past or {})
        if len(groups) == 1:
            return self._moved(state, groups[0][0], past is not None, *whole)
        parts, order = [], torch.cat([rows for _, rows in groups])
        for weights, rows in groups:
            part = state.index(rows)
            parts.append(self._moved(part, weights, past is not None, *_rows(whole, rows)))
        back = order.argsort()
        clean = {f: torch.cat([p[f] for p in parts])[back] for f in strong.clean}
        if past is None:
            return Prediction(clean)
        kept = [p.differences for p in parts if isinstance(p, _Remembering)]
        names = [f for f in kept[0] if all(f in d for d in kept)]
        return _Remembering(clean, {f: torch.cat([d[f] for d in kept])[back] for f in names})

    def _ask(
        self, denoiser: torch.nn.Module, state: State, t: Times | float,
        previous: Prediction | None,
    ) -> Prediction:  # fmt: skip
        before = getattr(denoiser, "calls", None)
        answer: Prediction = denoiser(state, t, previous)
        after = getattr(denoiser, "calls", None)
        counts = isinstance(before, int) and isinstance(after, int)
        self.calls += after - before if counts else 1  # type: ignore[operator]
        return answer

    def _moved(
        self,
        state: State,
        weights: tuple[float, ...],
        remembers: bool,
        strong: dict[str, Tensor],
        weak: Mapping[int, dict[str, Tensor]],
        times: dict[str, Tensor],
        past: dict[str, Tensor],
    ) -> Prediction:
        """The estimate for samples that share their weights."""
        used = [k for k in weak if weights[k] != 0]
        clean, differences = dict(strong), dict(past)
        for name, path in self.paths.items() if used else ():
            x, total, mean = state[name], weights[used[0]], weak[used[0]][name]
            for k in used[1:]:
                total += weights[k]
                mean = path.extrapolate(x, mean, weak[k][name], -weights[k] / total)
            if self.rule is None or not isinstance(path, GaussianPath):
                clean[name] = path.extrapolate(x, strong[name], mean, total)
                continue
            if self.rule.momentum and name in past:
                mean = mean - self.rule.momentum * past[name]
            differences[name] = strong[name] - mean
            seen = Seen(path, x, strong[name], mean, times[name], state.context)
            known = path.space.expand(times[name], x) <= 0
            clean[name] = torch.where(known, strong[name], self.rule(seen, total))
        return _Remembering(clean, differences) if remembers else Prediction(clean)

    def _past(self, previous: Prediction | None) -> dict[str, Tensor] | None:
        """The differences of the last call; ``None`` for rules without momentum."""
        if self.rule is None or not self.rule.momentum:
            return None
        if previous is None:
            return {}
        if not isinstance(previous, _Remembering):
            raise InputError(
                "momentum travels from call to call in the prediction, which another guidance "
                "around this one replaces; make this one the outermost, or set momentum to 0"
            )
        return previous.differences

    def _weights_at(self, t: float) -> tuple[float, ...]:
        if not self.interval[0] <= t <= self.interval[1]:
            return (0.0,) * len(self.weights)
        values = tuple(float(w(t)) if callable(w) else w for w in self.weights)
        if not all(math.isfinite(w) for w in values):
            raise InputError(f"the guidance weight at time {t:g} is {values}; it must be finite")
        return values

    def _groups(self, t: Times | float) -> list[tuple[tuple[float, ...], Tensor]]:
        """Weights, and the rows that have them; one group, and no rows, on one shared clock."""
        value = t[next(iter(self.paths))] if isinstance(t, Mapping) else t
        if not isinstance(value, Tensor) or value.ndim == 0:
            return [(self._weights_at(float(value)), torch.empty(0, dtype=torch.int64))]
        # Given elements are at time 0: the clock is where the others are.
        clock = value.flatten(1).amax(1) if value.ndim > 1 else value
        groups: dict[tuple[float, ...], list[int]] = {}
        for i, u in enumerate(clock.tolist()):
            groups.setdefault(self._weights_at(u), []).append(i)
        return [(w, torch.tensor(rows, device=value.device)) for w, rows in groups.items()]


def logsnr_interval(paths: Mapping[str, Path], low: float, high: float) -> tuple[float, float]:
    """Times between which log(a/s) of the first continuous field is at least low, at most high.

    Args:
        paths: of the model; where no field is continuous, the first counts.
        low: least log(a/s), the noisy end.
        high: largest.
    """
    if not low <= high:
        raise InputError(f"a range of log(a/s) goes up, not from {low} to {high}")
    gaussian = [p for p in paths.values() if isinstance(p, GaussianPath)]
    schedule = next(iter(gaussian or paths.values())).schedule
    times = schedule.at_logsnr(torch.tensor([high, low], dtype=torch.float64)).clamp(0, 1)
    return float(times[0]), float(times[1])


def _check_paths(paths: Mapping[str, Path], weak: Mapping[str, Path]) -> None:
    if list(paths) != list(weak) and set(paths) != set(weak):
        raise InputError(
            f"the weak model has the fields {', '.join(weak)}, the model {', '.join(paths)}; "
            "both must estimate the same"
        )
    t = torch.linspace(0.05, 0.95, 7, dtype=torch.float64)
    for name, path in paths.items():
        ours, theirs = path.schedule(t), weak[name].schedule(t)
        if not all(torch.allclose(a, b, rtol=1e-6) for a, b in zip(ours, theirs, strict=True)):
            raise InputError(
                f"field {name!r} of the weak model is noised by another schedule; give it the "
                "model's: weak.reschedule({name: path.schedule ...})"
            )


def _rows(nested: tuple[dict, ...], rows: Tensor) -> tuple:  # type: ignore[type-arg]
    """Some samples of tensors in dictionaries in dictionaries."""

    def pick(y: dict | Tensor) -> dict | Tensor:  # type: ignore[type-arg]
        return {k: pick(v) for k, v in y.items()} if isinstance(y, dict) else y[rows]

    return tuple(pick(y) for y in nested)
