r"""Superposition of models by their densities along the way (Skreta et al. 2025, *SuperDiff*).

Models q_1 … q_M of the same fields are mixed in the clean estimate, D = Σ_i κ_i D_i, Σ κ_i = 1, by
weights that follow log q_i(x_t). With Ŷ = a x/s² and the signal-to-noise ratio Λ = a²/s² as clock a
noisy sample is what has been seen of x_0 so far, and

    d log q_i/q° = ⟨D_i, dŶ⟩ − ½ |D_i|² dΛ                          (``sde``, Itô; no divergence)
    d log q_i/q° = ⟨D_i, dŶ⟩ − ½ (|D_i|² + tr V_i) dΛ, V = (s²/a) C Jᵀ   (``ode``, trapezoidal rule)

with q° the noise alone, the same for all models; this is the paper's estimator in a clock in which
it is finite in pure noise. The first holds where x moves with the noise of the reverse process
(``ddpm``, or ``ddim`` with η = 1), the second along smooth paths (deterministic solvers, at one
Jacobian trace a model and call). Tokens add log p_i(x_s | x_t) of their step, and so do points of a
manifold under heat (``sde``; :mod:`~sciflow.guidance.several.path_density`). A geodesic flow tells
no density: such a field follows the weights that the others give.

``or``       κ = softmax(T log q_i + l_i): T = 1 and l = log w samples the mixture Σ w_i q_i.
``and``      all log q_i + l_i stay equal: samples that all models find equally likely. The drift of
             their differences vanishes for a D at equal distance from all D_i (½, ½ for two; least
             squares for more), and the noise along them is taken out after each step,

                 Ŷ ← Ŷ + dΛ Σ_j w_j D_j,  Σ w_j = 0,

             which is the paper's κ for the noise that was drawn; they then hold exactly, not on
             average. But noise that is taken out is missing in Itô's formula, which the paper
             overlooks: its differences drift, however small the steps are. With e_k the
             orthonormal directions of the D_i − D_j, d log q_i/q° loses ½ Σ_k ⟨e_k, V_i e_k⟩ dΛ
             (M − 1 products a model and call). The sampler calls :meth:`after_step`.
``average``  κ = softmax(l) throughout: averaged scores, the baseline. It follows no density.

What is remembered of a run travels in the estimate that the sampler hands back as ``previous``, so
one object serves any number of runs. It must be the outermost guidance: guide the models inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.several.composition import blend, same_paths
from sciflow.guidance.several.path_density import (
    Form,
    Seen,
    free_elements,
    free_numbers,
    gram_matrix,
    has_density,
    log_density,
    log_gain,
    noise_gain,
    point_gain,
    signal,
    solve,
    speed,
    spread_of_noise,
    token_gain,
)
from sciflow.guidance.several.spread import spread_without_noise, trace
from sciflow.guidance.several.superposed import Superposed
from sciflow.paths import CategoricalPath, GaussianPath, GeodesicPath
from sciflow.random import Draws
from sciflow.samplers.hooks import Step
from sciflow.state import State, Times

__all__ = ["Superposed", "Superposition"]

Rule = Literal["or", "and", "average"]


class Superposition(Denoiser):
    """Several models as one; see the module.

    ``latest`` is the estimate of the last call, to read weights and densities from; ``calls``
    counts evaluations of models, M for each call of this one.

    Args:
        denoisers: models of the same fields and schedules, guided or not.
        rule: how they are mixed.
        temperature: T of ``or``.
        offsets: l_i; default 0.
        form: which densities, by the sampler: stochastic or deterministic.
        per_field: weights of every field from the densities of that field alone.
        draws: random numbers of one Rademacher probe for ``ode`` (Hutchinson); those of the batch.
            Default: exact traces, a product for every number of the field.
    """

    def __init__(self, denoisers: Sequence[Denoiser], rule: Rule = "or", temperature: float = 1.0,
                 offsets: Sequence[float] | None = None, form: Form = "sde",
                 per_field: bool = False, draws: Draws | None = None):  # fmt: skip
        super().__init__()
        if rule not in get_args(Rule) or form not in get_args(Form):
            raise InputError(
                f"rule is one of {', '.join(get_args(Rule))} and form of "
                f"{', '.join(get_args(Form))}, not {rule!r} and {form!r}"
            )
        if offsets is not None and len(offsets) != len(denoisers):
            raise InputError(f"{len(offsets)} offsets for {len(denoisers)} models: give one each")
        if not math.isfinite(temperature):
            raise InputError(f"temperature must be finite, not {temperature}")
        self.paths = same_paths(denoisers)
        self.denoisers = torch.nn.ModuleList(denoisers)
        self.rule, self.form, self.temperature = rule, form, temperature
        self.offsets = torch.tensor(offsets or [0.0] * len(denoisers), dtype=torch.float64)
        self.per_field, self.draws = per_field, draws
        self.followed = [n for n, p in self.paths.items() if has_density(p)]
        lost = [name for name in self.paths if name not in self.followed]
        if rule != "average" and (not self.followed or (per_field and lost)):
            raise InputError(
                f"a geodesic flow tells no density of field {lost[0]!r} to weigh models by; take "
                "per_field=False, rule='average', or models trained as kind='diffusion'"
            )
        curved = [n for n in self.followed if isinstance(self.paths[n], GeodesicPath)]
        if curved and form == "ode" and rule != "average":
            raise InputError(
                f"the density of field {curved[0]!r}, of points of a manifold, is followed along "
                "the reverse process alone; take form='sde' and a stochastic method"
            )
        if rule == "and" and not any(isinstance(p, GaussianPath) for p in self.paths.values()):
            raise InputError("rule='and' moves continuous fields, and these models have none")
        self.latest: Superposed | None = None
        self.calls = 0
        self._hooked = False

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Superposed:
        """The mixed estimate.

        Raises:
            InputError: ``t`` is no single number, or ``previous`` is not the answer of this model.
        """
        memory = previous if isinstance(previous, Superposed) else None
        if previous is None:
            self._hooked = False
        elif memory is None or (self.rule == "and" and not self._hooked):
            raise InputError(
                "a superposition follows its own run, and something between it and the sampler "
                "keeps its memory from it; make it the outermost guidance, and guide the models "
                "inside"
            )
        if not isinstance(t, float):
            raise InputError("models are followed on one shared clock: t must be a number")
        parts, spreads = self._ask(state, t, memory)
        with torch.no_grad():
            seen, symbols = self._see(state, t, parts, spreads)
            points = self._points(state, t, parts)
            log_ratio = self._follow(state, memory, seen, symbols, points)
            kappa = self._weights(state, t, log_ratio, seen)
            reference = self._reference(state, memory, seen)
            density = log_density(self.paths, state, t, log_ratio, reference)
        clean = {}
        for name, path in self.paths.items():
            answers = [p[name] for p in parts]
            if self.rule == "or" and isinstance(path, CategoricalPath):
                # A mixture is one of probabilities.
                clean[name] = torch.stack(
                    [k.clamp(min=1e-30).log().to(d)[(..., *(None,) * (d.ndim - 1))]
                     + d.log_softmax(-1) for k, d in zip(kappa[name].unbind(1), answers,
                                                        strict=True)]
                ).logsumexp(0)  # fmt: skip
            else:
                weights = list(kappa[name].unbind(1))
                clean[name] = blend(path, state[name], answers, weights)
        self.latest = Superposed(clean, tuple(parts), kappa, log_ratio, density, reference, seen,
                                 symbols, points)  # fmt: skip
        return self.latest

    def after_step(self, step: Step) -> State:
        """For ``and``: takes out what the noise of the step has added to the differences."""
        memory, state = step.prediction, step.state
        self._hooked = True
        names = [n for n, p in self.paths.items() if isinstance(p, GaussianPath)]
        if self.rule != "and" or step.end <= 0 or not isinstance(memory, Superposed):
            return state
        grams, gaps, widths = {}, {}, {}
        for name in names:
            old, path = memory.seen[name], self.paths[name]
            y, ratio = signal(path, state[name], name, state.context, step.end)
            now = Seen(y, ratio, old.clean, old.spread, None)
            gaps[name] = memory.log_ratio[name] + log_gain(path, state.context, old, now)
            widths[name] = 1.0 if self.per_field else ratio - old.ratio
            grams[name] = widths[name] * gram_matrix(path, state.context, old.clean)
        if not self.per_field:
            tokens = [memory.log_ratio[n] for n in self.followed if n not in names]
            total = torch.stack([*gaps.values(), *tokens]).sum(0)
            gaps = dict.fromkeys(names, total)
            grams = dict.fromkeys(names, torch.stack(list(grams.values())).sum(0))
        fields = dict(state.fields)
        for name in names:
            path, x, seen = self.paths[name], state[name], memory.seen[name]
            w = -widths[name] * solve(grams[name], gaps[name] + self.offsets.to(gaps[name]))
            shift = torch.einsum("bm,bm...->b...", w, seen.clean)
            a, s = (float(c) for c in path.schedule(torch.tensor(step.end, dtype=torch.float64)))
            fields[name] = x + (s**2 / a * shift).to(x.dtype)
        return State(fields, state.context)

    def _ask(self, state: State, t: float, memory: Superposed | None) -> tuple[
        list[Prediction], dict[str, Tensor]
    ]:  # fmt: skip
        """The estimates, and where they are needed tr V_i of the models and of N(0, σ_d² C) over
        the directions without noise, ``[B, M + 1]`` a continuous field."""
        self.calls += len(self.denoisers)
        names = [n for n, p in self.paths.items() if isinstance(p, GaussianPath)]
        smooth = self.form == "ode" and self.rule != "average"
        curved = smooth or self.rule == "and"
        asked = state
        if curved:
            asked = state.replace(**{n: state[n].detach().requires_grad_(True) for n in names})
        parts: list[Prediction] = []
        traces: dict[str, list[Tensor]] = {n: [] for n in names}
        for i, model in enumerate(self.denoisers):
            with torch.set_grad_enabled(curved or torch.is_grad_enabled()):
                parts.append(model(asked, t, memory.parts[i] if memory else None))
            if smooth:
                for n in names:
                    traces[n].append(trace(self.paths[n], n, asked, parts[i], t, self.draws))
                parts[i] = parts[i].detach()
        if not curved:
            return parts, {}
        if smooth:
            known = {
                n: spread_of_noise(self.paths[n], t) * free_numbers(self.paths[n], n, state)
                for n in names
            }
            return parts, {n: torch.stack([*v, known[n]], 1) for n, v in traces.items()}
        detached = [part.detach() for part in parts]
        seen = self._see(state, t, detached, {})[0]
        groups = [[n] for n in names] if self.per_field else [names]
        spreads = spread_without_noise(self.paths, groups, seen, asked, parts, t)
        return detached, spreads

    def _see(self, state: State, t: float, parts: Sequence[Prediction],
             spreads: dict[str, Tensor]) -> tuple[
        dict[str, Seen], dict[str, tuple[Tensor, float, tuple[Tensor, ...]]]
    ]:  # fmt: skip
        seen, symbols = {}, {}
        if self.rule == "average":
            return {}, {}
        for name in self.followed:
            path, x = self.paths[name], state[name]
            if isinstance(path, GeodesicPath):
                continue
            if isinstance(path, CategoricalPath):
                alpha = float(path.keep(torch.tensor(t, dtype=torch.float64)))
                symbols[name] = (x, alpha, tuple(p[name].double().softmax(-1) for p in parts))
                continue
            y, ratio = signal(path, x, name, state.context, t)
            known = ~path.space.expand(free_elements(path, name, state.context), x)
            clean = torch.stack([p[name].double().masked_fill(known, 0) for p in parts], 1)
            spread, m = spreads.get(name), len(parts)
            cut = (None, None) if spread is None else (spread[:, :m], spread[:, m:])
            seen[name] = Seen(y, ratio, clean, *cut)
        return seen, symbols

    def _points(self, state: State, t: float, parts: Sequence[Prediction]
                ) -> dict[str, tuple[Tensor, Tensor, float]]:  # fmt: skip
        points = {}
        for name in self.followed if self.rule != "average" else ():
            path, x = self.paths[name], state[name].double()
            if isinstance(path, GeodesicPath):
                vectors = torch.stack([path.space.log(x, p[name].double()) for p in parts], 1)
                points[name] = (x, vectors, float(path.scale(x.new_tensor(t))))
        return points

    def _follow(self, state: State, memory: Superposed | None, seen: dict[str, Seen],
                symbols: dict[str, tuple[Tensor, float, tuple[Tensor, ...]]],
                points: dict[str, tuple[Tensor, Tensor, float]]) -> dict[str, Tensor]:  # fmt: skip
        """log q_i/q° at this call."""
        zeros = torch.zeros(state.batch_size, len(self.denoisers), dtype=torch.float64,
                            device=state.device)  # fmt: skip
        if memory is None or self.rule == "average":
            return dict.fromkeys(self.paths, zeros)
        answer = {}
        for name in self.followed:
            path, change = self.paths[name], zeros
            if isinstance(path, CategoricalPath):
                x, alpha, p = memory.symbols[name]
                change = change + token_gain(path, name, state, x, p, alpha, symbols[name][1])
            elif isinstance(path, GeodesicPath):
                x, u, sigma = memory.points[name]
                change = change + point_gain(path, name, state, x, u, sigma, points[name][2])
            else:
                change = log_gain(path, state.context, memory.seen[name], seen[name],
                               self.form)  # fmt: skip
            answer[name] = memory.log_ratio[name] + change
        return answer

    def _weights(self, state: State, t: float, log_ratio: dict[str, Tensor],
                 seen: dict[str, Seen]) -> dict[str, Tensor]:  # fmt: skip
        offsets = self.offsets.to(state.device)
        even = offsets.softmax(0).expand(state.batch_size, -1)
        if self.rule == "average":
            return dict.fromkeys(self.paths, even)
        if self.rule == "or":
            total = torch.stack(list(log_ratio.values())).sum(0)
            logs = log_ratio if self.per_field else dict.fromkeys(self.paths, total)
            return {n: (self.temperature * v + offsets).softmax(1) for n, v in logs.items()}
        grams = {n: gram_matrix(self.paths[n], state.context, z.clean) for n, z in seen.items()}
        if not self.per_field and len(grams) > 1:
            # Fields count by how fast they are seen.
            first = speed(self.paths[next(iter(grams))], t)
            total = torch.stack(
                [speed(self.paths[n], t) / first * g for n, g in grams.items()]
            ).sum(0)
            grams = dict.fromkeys(grams, total)
        flat = 1 / len(self.denoisers)
        kappa = dict.fromkeys(self.paths, torch.full_like(even, flat))
        spreads = {n: even * 0 if z.spread is None else z.spread.nan_to_num(0.0)
                   for n, z in seen.items()}  # fmt: skip
        for name, gram in grams.items():
            wanted = gram.diagonal(dim1=1, dim2=2) + (
                spreads[name] if self.per_field else torch.stack(list(spreads.values())).sum(0)
            )
            kappa[name] = flat + 0.5 * solve(gram, wanted)
        return kappa

    def _reference(self, state: State, memory: Superposed | None,
                   seen: dict[str, Seen]) -> dict[str, Tensor]:  # fmt: skip
        """The sums of the steps so far for N(0, σ_d² C), whose errors are those of the models."""
        answer = {}
        for name, z in seen.items():
            old = memory.seen[name] if memory else z
            change = noise_gain(self.paths[name], state.context, old, z, self.form)
            answer[name] = change + (memory.reference[name] if memory else 0)
        return answer
