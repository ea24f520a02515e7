r"""Superposition of models by their densities along the way (Skreta et al. 2025, *SuperDiff*).

Models q_1 … q_M of the same fields are mixed in the clean estimate, D = Σ_i κ_i D_i, Σ κ_i = 1, by
weights that follow log q_i(x_t). With Ŷ = a x/s² and the signal-to-noise ratio Λ = a²/s² as clock a
noisy sample is what has been seen of x_0 so far, and

    d log q_i/q° = ⟨D_i, dŶ⟩ − ½ |D_i|² dΛ                          (``sde``, Itô; no divergence)
    d log q_i/q° = ⟨D_i, dŶ⟩ − ½ (|D_i|² + tr V_i) dΛ, V = (s²/a) C Jᵀ   (``ode``, trapezoidal rule)

with q° the noise alone, the same for all models; this is the paper's estimator in a clock in which
it is finite in pure noise. The first holds where x moves with the noise of the reverse process
(``ddpm``, or ``ddim`` with η = 1), the second along smooth paths (deterministic solvers, at one
Jacobian trace a model and call). Tokens add log p_i(x_s | x_t) of their step.

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
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.several.composition import blend, same_paths
from sciflow.guidance.several.path_density import (
    DEGENERATE,
    Form,
    Seen,
    free_elements,
    gram_matrix,
    log_gain,
    shrink,
    solve,
)
from sciflow.likelihood.divergence import Probes
from sciflow.paths import CategoricalPath, GaussianPath, Path
from sciflow.random import Draws
from sciflow.samplers.hooks import Step
from sciflow.spaces import Space
from sciflow.state import Context, State, Times

__all__ = ["Superposed", "Superposition"]

Rule = Literal["or", "and", "average"]


@dataclass(frozen=True)
class Superposed(Prediction):
    """A mixed estimate, with what the next call needs.

    Attributes:
        parts: each model's own estimate.
        kappa: weights of every field, ``{name: [B, M]}``.
        log_ratio: log q_i/q° of every field, ``{name: [B, M]}``.
        log_density: log q_i(x_t), nats, ``[B, M]`` (of continuous fields; of tokens relative to
            the corruption).
        reference: the same sums for N(0, σ_d²), whose density is known, ``{name: [B, 1]}``.
        seen: the call itself.
        symbols: of token fields (symbols, α, probabilities of each model).
    """

    parts: tuple[Prediction, ...]
    kappa: dict[str, Tensor]
    log_ratio: dict[str, Tensor]
    log_density: Tensor
    reference: dict[str, Tensor]
    seen: dict[str, Seen]
    symbols: dict[str, tuple[Tensor, float, tuple[Tensor, ...]]]

    def index(self, rows: Tensor) -> Superposed:
        def each(x: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: y[rows] for name, y in x.items()}

        seen = {
            name: Seen(z.y[rows], z.ratio, z.clean[rows],
                        None if z.spread is None else z.spread[rows],
                        None if z.known is None else z.known[rows])
            for name, z in self.seen.items()
        }  # fmt: skip
        symbols = {name: (x[rows], alpha, tuple(q[rows] for q in p))
                   for name, (x, alpha, p) in self.symbols.items()}  # fmt: skip
        return Superposed(each(self.clean), tuple(p.index(rows) for p in self.parts),
                          each(self.kappa), each(self.log_ratio), self.log_density[rows],
                          each(self.reference), seen, symbols)  # fmt: skip


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
        self.followed = [n for n, p in self.paths.items()
                         if isinstance(p, GaussianPath | CategoricalPath)]  # fmt: skip
        lost = [name for name in self.paths if name not in self.followed]
        if rule != "average" and (not self.followed or (per_field and lost)):
            raise InputError(
                f"there is no density of field {lost[0]!r}, a point of a manifold, to weigh models "
                "by; take per_field=False, or rule='average'"
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
            log_ratio = self._follow(state, memory, seen, symbols)
            kappa = self._weights(state, t, log_ratio, seen)
            reference = self._reference(state, memory, seen)
            density = self._density(state, t, log_ratio, reference)
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
                                 symbols)  # fmt: skip
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
            y, ratio = self._signal(path, state[name], name, state.context, step.end)
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
                    traces[n].append(self._trace(self.paths[n], n, asked, parts[i], t))
                parts[i] = parts[i].detach()
        if not curved:
            return parts, {}
        if smooth:
            known = {n: self._known(n, t) * self._dimensions(state, n) for n in names}
            return parts, {n: torch.stack([*v, known[n]], 1) for n, v in traces.items()}
        spreads = self._without_noise(names, asked, parts, t)
        return [part.detach() for part in parts], spreads

    def _without_noise(self, names: list[str], state: State, parts: list[Prediction],
                       t: float) -> dict[str, Tensor]:  # fmt: skip
        """Σ_k ⟨e_k, V_i e_k⟩ over the directions whose noise ``and`` takes out."""
        detached = [part.detach() for part in parts]
        seen = self._see(state, t, detached, {})[0]
        groups = [[n] for n in names] if self.per_field else [names]
        answer: dict[str, Tensor] = {}
        for group in groups:
            # The clock of a group is that of its first field.
            rate = {n: self._speed(n, t) / self._speed(group[0], t) for n in group}
            gram = torch.stack([rate[n] * gram_matrix(self.paths[n], state.context, seen[n].clean)
                                for n in group]).sum(0)  # fmt: skip
            values, vectors = torch.linalg.eigh(gram)
            used = values > DEGENERATE * values[:, -1:]
            scaled = vectors * torch.where(used, values, 1.0).rsqrt()[:, None] * used[:, None]
            total = torch.zeros(len(values), len(parts) + 1, dtype=torch.float64,
                                device=values.device)  # fmt: skip
            for k in range(1, len(parts)):
                n_k = {
                    n: rate[n] * torch.einsum("bm,bm...->b...", scaled[:, :, k], seen[n].clean)
                    for n in group
                }
                known = [
                    self._known(n, t) * self.paths[n].space.inner(v, v, state.context)
                    for n, v in n_k.items()
                ]
                each = [self._curvature(state, part, n_k, t) for part in parts]
                total = total + torch.stack([*each, torch.stack(known).sum(0)], 1)
            answer |= {n: total if n == group[0] else torch.zeros_like(total) for n in group}
        return answer

    def _curvature(self, state: State, part: Prediction, along: dict[str, Tensor],
                   t: float) -> Tensor:  # fmt: skip
        """⟨n, V n⟩ of one model, V = ∂D/∂Ŷ, ``[B]``; 0 in pure noise, where none can be told."""
        gain = {}
        for name in along:
            a, s = (float(c) for c in
                    self.paths[name].schedule(torch.tensor(t, dtype=torch.float64)))  # fmt: skip
            gain[name] = s**2 / a if a > 1e-6 * s else 0.0
        names = list(along)
        n = [along[f].to(part[f]) for f in names]
        x, y = [state[f] for f in names], [part[f] for f in names]
        spaces = [self.paths[f].space for f in names]
        total = torch.zeros(state.batch_size, dtype=torch.float64, device=state.device)
        if not any(d.requires_grad for d in y):
            return total
        if all(type(space).inner is Space.inner for space in spaces):
            # Noise is white: one product from the left does.
            back = torch.autograd.grad(y, x, n, retain_graph=True, materialize_grads=True)
        else:
            probes = [torch.zeros_like(d, requires_grad=True) for d in y]
            left = torch.autograd.grad(y, x, probes, create_graph=True, materialize_grads=True)
            right = [gain[f] * v for f, v in zip(names, n, strict=True)]
            back = torch.autograd.grad(left, probes, right, retain_graph=True,
                                       materialize_grads=True)  # fmt: skip
            gain = dict.fromkeys(names, 1.0)
        for f, space, u, v in zip(names, spaces, back, n, strict=True):
            total = total + gain[f] * space.inner(u.detach(), v, state.context).double()
        return total

    def _trace(self, path: Path, name: str, state: State, part: Prediction, t: float) -> Tensor:
        x = state[name]
        free = free_elements(path, name, state.context)
        a, s = (float(c) for c in path.schedule(torch.tensor(t, dtype=torch.float64)))
        if self.draws is None:
            probes = Probes(path.space, state.context, free, x)
        else:
            probes = Probes.draw(path.space, state.context, free, x, self.draws, "rademacher", 1,
                                 f"{name}/superposition", round(t * 2**31), 16)  # fmt: skip
        trace = probes.traces(part[name], x, differentiable=False).mean(1)
        # In pure noise nothing can be told from the Jacobian; the next call stands in.
        return trace * (s**2 / a) if a > 1e-6 * s else torch.full_like(trace, math.nan)

    def _signal(self, path: Path, x: Tensor, name: str, context: Context, t: float) -> tuple[
        Tensor, float
    ]:  # fmt: skip
        """Ŷ with zeros where nothing is free, and Λ."""
        a, s = (float(c) for c in path.schedule(torch.tensor(t, dtype=torch.float64)))
        free = path.space.expand(free_elements(path, name, context), x)
        return (x.double() * (a / s**2)).masked_fill(~free, 0), (a / s) ** 2

    def _see(self, state: State, t: float, parts: Sequence[Prediction],
             spreads: dict[str, Tensor]) -> tuple[
        dict[str, Seen], dict[str, tuple[Tensor, float, tuple[Tensor, ...]]]
    ]:  # fmt: skip
        seen, symbols = {}, {}
        if self.rule == "average":
            return {}, {}
        for name in self.followed:
            path, x = self.paths[name], state[name]
            if isinstance(path, CategoricalPath):
                alpha = float(path.keep(torch.tensor(t, dtype=torch.float64)))
                symbols[name] = (x, alpha, tuple(p[name].double().softmax(-1) for p in parts))
                continue
            y, ratio = self._signal(path, x, name, state.context, t)
            known = ~path.space.expand(free_elements(path, name, state.context), x)
            clean = torch.stack([p[name].double().masked_fill(known, 0) for p in parts], 1)
            spread, m = spreads.get(name), len(parts)
            cut = (None, None) if spread is None else (spread[:, :m], spread[:, m:])
            seen[name] = Seen(y, ratio, clean, *cut)
        return seen, symbols

    def _follow(self, state: State, memory: Superposed | None, seen: dict[str, Seen],
                symbols: dict[str, tuple[Tensor, float, tuple[Tensor, ...]]]
                ) -> dict[str, Tensor]:  # fmt: skip
        """log q_i/q° at this call."""
        zeros = torch.zeros(state.batch_size, len(self.denoisers), dtype=torch.float64,
                            device=state.device)  # fmt: skip
        if memory is None or self.rule == "average":
            return dict.fromkeys(self.followed, zeros)
        answer = {}
        for name in self.followed:
            path, change = self.paths[name], zeros
            if isinstance(path, CategoricalPath):
                x, alpha, p = memory.symbols[name]
                now = symbols[name][1]
                if now > alpha:
                    chain = path.within(state.context)
                    at, to = (torch.tensor(v, dtype=torch.float64) for v in (alpha, now))
                    free = free_elements(path, name, state.context)
                    laws = [chain.posterior(q, x, at, to) for q in p]
                    here = [law.gather(-1, state[name][..., None])[..., 0] for law in laws]
                    change = torch.stack(
                        [path.space.sum(h.clamp(min=1e-30).log() * free, state.context)
                         for h in here], 1,
                    )  # fmt: skip
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
            first = self._speed(next(iter(grams)), t)
            total = torch.stack([self._speed(n, t) / first * g for n, g in grams.items()]).sum(0)
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

    def _speed(self, name: str, t: float) -> float:
        times = torch.tensor([t, 0.98 * t], dtype=torch.float64)
        a, s = self.paths[name].schedule(times)
        late, early = ((a / s) ** 2).tolist()
        return float(early - late)

    def _reference(self, state: State, memory: Superposed | None,
                   seen: dict[str, Seen]) -> dict[str, Tensor]:  # fmt: skip
        """The sums of the steps so far for N(0, σ_d² C), whose errors are those of the models."""
        answer = {}
        for name, z in seen.items():
            path, old = self.paths[name], memory.seen[name] if memory else z
            assert isinstance(path, GaussianPath)
            before, now = (
                Seen(e.y, e.ratio, shrink(path, e.ratio) * e.y[:, None], e.known, None)
                for e in (old, z)
            )
            change = log_gain(path, state.context, before, now, self.form)
            answer[name] = change + (memory.reference[name] if memory else 0)
        return answer

    def _known(self, name: str, t: float) -> float:
        """V of N(0, σ_d² C), in units of C."""
        path = self.paths[name]
        assert isinstance(path, GaussianPath)
        a, s = (float(c) for c in path.schedule(torch.tensor(t, dtype=torch.float64)))
        return shrink(path, (a / s) ** 2)

    def _dimensions(self, state: State, name: str) -> Tensor:
        path, x = self.paths[name], state[name]
        free = path.space.expand(free_elements(path, name, state.context), x)
        given = path.space.sum(torch.ones_like(x) * ~free, state.context)
        return (path.space.dimensions(x, state.context) - given).double()

    def _density(self, state: State, t: float, log_ratio: dict[str, Tensor],
                 reference: dict[str, Tensor]) -> Tensor:  # fmt: skip
        """log q_i = log N(x; 0, (a² σ_d² + s²) C) + what the sums of q_i exceed those of it by."""
        total = torch.stack(list(log_ratio.values())).sum(0)
        for name, known in reference.items():
            path, x = self.paths[name], state[name]
            assert isinstance(path, GaussianPath)
            a, s = (float(c) for c in path.schedule(torch.tensor(t, dtype=torch.float64)))
            variance = (a * path.data_std) ** 2 + s**2
            free = path.space.expand(free_elements(path, name, state.context), x)
            y = x.double().masked_fill(~free, 0)
            size = path.space.inner(y, y, state.context) / variance
            size = size + path.space.logdet(state.context)
            size = size + self._dimensions(state, name) * math.log(2 * math.pi * variance)
            total = total - known - 0.5 * size[:, None]
        return total
