"""A trained model as a user meets it: load it, sample it, save what came out.

    model = sciflow.load("molecules/qm9-gfn2")
    out = model.sample(100, target={"gap": 6.0}, seed=0)
    out.save("run/")

Sample i is a function of (model, targets, settings, seed, i).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciflow.bundled import bundled_models
from sciflow.checkpoints import Checkpoint, load_checkpoint, locate, save_checkpoint
from sciflow.denoisers import Denoiser, NetworkDenoiser
from sciflow.domain import Domain, Progress, get_domain
from sciflow.errors import CheckpointError, InputError
from sciflow.guidance import ClassifierFree
from sciflow.guides import find_guide, parse_guide
from sciflow.predictors import PropertyPredictor, load_predictor
from sciflow.random import Draws
from sciflow.reference import same_size_error
from sciflow.runs import Run
from sciflow.samplers import Sampler
from sciflow.samples import Samples, SamplingInterrupted
from sciflow.schedules import Schedule, schedule_from_config
from sciflow.state import State
from sciflow.targets import Target, as_targets
from sciflow.tasks import Task

__all__ = ["Model", "Samples", "SamplingInterrupted", "bundled_models", "load"]


class Model:
    """A denoiser with its domain, sampler settings and training-set reference.

    Args:
        domain: the adapter.
        denoiser: the trained denoiser (averaged weights), possibly guided.
        config: the checkpoint's configuration.
        reference: small tensors of the training set.
        card: Markdown.
        name: what it was loaded as.
        digest: identity of the checkpoint.

    Attributes:
        targets: what is asked for in the run that a guide is made for; else empty.
        classifier_free: weight and times of classifier-free guidance in that run.
    """

    def __init__(self, domain: Domain, denoiser: Denoiser, config: Mapping[str, Any],
                 reference: Mapping[str, Tensor], card: str = "", name: str = "",
                 digest: str = ""):  # fmt: skip
        self.domain, self.denoiser, self.config = domain, denoiser.eval(), dict(config)
        self.reference, self.card, self.name, self.digest = dict(reference), card, name, digest
        self.sampler = Sampler(**self.config.get("sampler", {}))
        self.guides: list[str] = []
        self._brought: list[str] = []
        self.targets: Mapping[str, Target] = {}
        self.classifier_free: tuple[float, tuple[float, float]] = (0.0, (0.0, 1.0))
        self._wraps: list[Callable[[Model, Denoiser], Denoiser]] = []
        self._weight: float | None = None

    def has_guide(self, name: str) -> bool:
        """Whether a guide of that name is on."""
        return any(_guide_name(label) == name for label in self.guides)

    @property
    def properties(self) -> list[str]:
        """What this model can be asked for."""
        return list(self.config.get("conditions", {}))

    def sample(
        self,
        n: int,
        target: Mapping[str, float | tuple[float, float] | Target] | None = None,
        seed: int = 0,
        *,
        guidance: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        first: int = 0,
        batch_size: int | None = None,
        sampler: Mapping[str, Any] | None = None,
        device: str = "cpu",
        best_of: int = 1,
        task: Mapping[str, Any] | None = None,
        progress: Progress | None = None,
    ) -> Samples:
        """Draw ``n`` samples, numbered from ``first``; sample i depends on (seed, i) alone.

        Args:
            n: how many.
            target: property → value or range, in the property's unit.
            seed: any integer.
            guidance: weight of classifier-free guidance; 0 is none, default the model's own.
            guidance_interval: times (first, last) of the shared clock, 0 data, 1 noise, between
                which guidance acts, at a second call each; default the model's own.
            first: number of the first sample, so that a large run can be sharded.
            batch_size: samples a network call; changes speed and memory only. Default 32 on a CPU,
                whose caches then hold a batch, and 256 elsewhere.
            sampler: settings that differ from the model's, e.g. ``{"steps": 100}``.
            device: where to compute.
            best_of: candidates a sample, of which the sound one is kept in which the model's
                predictor finds the targets likeliest; the first candidate is the sample that
                ``best_of=1`` gives. Costs as many times the calls.
            task: options of the domain (:attr:`sciflow.domain.Domain.options`), for instance
                ``{"motif": "file.pdb", "contig": "10-40/A25-46/10-40"}`` of proteins.
            progress: told (samples done, n).
        """
        if n < 1:
            raise InputError(f"the number of samples must be at least 1, not {n}")
        if batch_size is None:
            batch_size = 32 if torch.device(device).type == "cpu" else 256
        if batch_size < 1:
            raise InputError(f"a batch holds at least 1 sample, not {batch_size}")
        asked = as_targets(target or {}, [*self.properties, *self.domain.requests])
        # A size is given to the context; what a network was trained on is guided towards.
        targets = {k: v for k, v in asked.items() if k in self.properties}
        chosen = replace(self.sampler, **self._settings(sampler or {}))
        weight = guidance
        if weight is None:
            weight = self._guidance(targets) if self._weight is None else self._weight
        if not 0 <= weight < math.inf:
            raise InputError(f"guidance weight must be 0 (none) or more, not {weight}")
        between = guidance_interval or tuple(self.config.get("guidance_interval", (0.0, 1.0)))
        denoiser = self.denoiser
        weight = weight if targets else 0.0
        if weight > 0:
            denoiser = ClassifierFree(denoiser, weight, between)
        # Guides are outside, where an oracle is asked once for both of its estimates.
        run = copy(self)
        run.sampler, run.targets, run.classifier_free = chosen, targets, (weight, between)
        denoiser, guides = run.under_guides(denoiser)
        job = self._task(task or {}, asked)
        if job is not None:
            denoiser = job.guided(run, denoiser)
        denoiser = denoiser.to(device).eval()
        judge = self._judge(best_of, targets)

        begin, cpu = time.monotonic(), time.process_time()
        draws = Draws(seed, torch.arange(first, first + n))
        context = (
            self.domain.context(self.config, self.reference, draws, asked)
            if job is None
            else job.begin(draws).context
        )
        decode = partial(self.domain.decode, self.config)
        made = Run(denoiser, self.denoiser, guides, chosen, context, job, decode, judge, best_of,
                   batch_size, device)(draws, progress)  # fmt: skip
        wanted = {k: v for k, v in context.conditions.items() if k in targets}
        samples = Samples(
            made.records,
            {k: v.tolist() for k, v in wanted.items()},
            dict(sorted(made.dropped.items())),
            made.calls,
            time.monotonic() - begin,
            {
                "model": self.name,
                "model_sha256": self.digest,
                "n": n,
                "first": first,
                "seed": seed,
                "targets": {k: str(v) for k, v in asked.items()},
                **({"task": {k: str(v) for k, v in task.items()}} if task else {}),
                "guidance": weight,
                "guidance_interval": list(between),
                "guides": list(self.guides),
                "guide_costs": made.costs,
                "best_of": best_of,
                "batch_size": batch_size,
                "device": device,
                "sampler": chosen.config(),
            },
            self.domain,
            time.process_time() - cpu,
            {k: same_size_error(context.lengths, v, self.reference, k) for k, v in wanted.items()},
            made.columns,
        )
        if made.interrupted:
            raise SamplingInterrupted(samples)
        return samples

    def guided(self, guide: str | Callable[[Denoiser], Denoiser], **settings: Any) -> Model:
        """The same model with its denoiser guided; it samples, and can be guided again, like any.

        A name that guides the model already is replaced, in its place: guides act in their order.
        ``none`` takes all guides away, those too that a model brings along (``config["guides"]``).

        Args:
            guide: a name (see :mod:`sciflow.guides`), or a function that wraps a denoiser.
            settings: of a named guide; the others keep their defaults.

        Raises:
            InputError: an unknown guide or setting; the message lists what there is.
        """
        wrap: Callable[[Model, Denoiser], Denoiser]
        weight, guides = self._weight, list(zip(self.guides, self._wraps, strict=True))
        if guide == "none":
            return self._with([], self._weight)
        if callable(guide):
            made, label = guide, getattr(guide, "__name__", "function")
            wrap = lambda run, denoiser: made(denoiser)  # noqa: E731
        else:
            found = find_guide(guide, self.domain.guides())
            chosen = found.complete(guide, settings)
            wrap = lambda run, denoiser: found.wrap(run, chosen, denoiser)  # noqa: E731
            label = f"{guide}:" + ",".join(f"{k}={v}" for k, v in chosen.items() if v != "")
            weight = 0.0 if found.instead else weight
        names = [_guide_name(k) for k, _ in guides]
        at = names.index(guide) if guide in names else len(names)
        return self._with([*guides[:at], (label, wrap), *guides[at + 1 :]], weight)

    def under_guides(self, denoiser: Denoiser) -> tuple[Denoiser, dict[str, Denoiser]]:
        """A denoiser under this model's guides, and what it is after each of them by its label.

        A guide is made for the sampler, the targets and the classifier-free guidance of the model
        that it is given: those of a run.
        """
        guided = {}
        for label, wrap in zip(self.guides, self._wraps, strict=True):
            guided[label] = denoiser = wrap(self, denoiser)
        return denoiser, guided

    def _with(
        self,
        guides: Sequence[tuple[str, Callable[[Model, Denoiser], Denoiser]]],
        weight: float | None,
    ) -> Model:
        """The same model under other guides."""
        guided = Model(self.domain, self.denoiser, self.config, self.reference, self.card,
                       self.name, self.digest)  # fmt: skip
        guided.guides = [label for label, _ in guides]
        guided._wraps = [wrap for _, wrap in guides]
        guided._weight, guided._brought = weight, self._brought
        return guided

    def predictor(self, name: str | Path | None = None) -> PropertyPredictor:
        """The predictor of properties that goes with this model, under the model's schedules.

        Args:
            name: a folder, or a bundled one; default that of the model's own name.

        Raises:
            InputError: there is none.
        """
        predictor = load_predictor(name or self.name or self.domain.default_model)
        return predictor.reschedule(_schedules(self.config)).eval()

    def _task(self, options: Mapping[str, Any], targets: Mapping[str, Target]) -> Task | None:
        known = self.domain.options
        if unknown := [name for name in options if name not in known]:
            raise InputError(
                f"{self.domain.name} cannot be asked for {unknown[0]!r}; it has: "
                f"{', '.join(known) or 'no tasks'}"
            )
        return self.domain.task(self, options, targets) if options else None

    def _judge(
        self, best_of: int, targets: Mapping[str, Target]
    ) -> Callable[[State, list[Any]], Tensor]:
        """Scores ``[B]`` of candidates, minus infinity where one is not sound."""
        if best_of < 1:
            raise InputError(f"best_of must be 1 (every sample is kept) or more, not {best_of}")
        if best_of == 1:
            return lambda state, records: torch.zeros(len(records))
        if not targets:
            raise InputError("best_of compares candidates by the targets, and there are none")
        predictor = self.predictor()
        predictor.require(targets)

        def judge(state: State, records: list[Any]) -> Tensor:
            sound = torch.tensor([not why for why in self.domain.verdicts(records)])
            with torch.no_grad():
                return predictor.of_clean(state).masked_fill(~sound, -math.inf)

        return judge

    def save(self, folder: str | Path) -> Path:
        """Write the model as a checkpoint folder."""
        if self.guides != self._brought or not isinstance(self.denoiser, NetworkDenoiser):
            raise InputError("a guided model cannot be saved; save the model it was made from")
        tensors = {f"network/{k}": v for k, v in self.denoiser.network.state_dict().items()}
        tensors |= {f"reference/{k}": v for k, v in self.reference.items()}
        return save_checkpoint(folder, Checkpoint(self.config, tensors, self.card))

    @classmethod
    def from_folder(cls, folder: str | Path, name: str = "") -> Model:
        """Load and verify a checkpoint folder."""
        checkpoint = load_checkpoint(folder)
        config = checkpoint.config
        domain = get_domain(config["domain"])
        denoiser = domain.denoiser(config)
        weights = checkpoint.part("network")
        expected = denoiser.network.state_dict()
        wrong = sorted(
            (set(weights) ^ set(expected))
            | {k for k in set(weights) & set(expected) if weights[k].shape != expected[k].shape}
        )
        if wrong:
            raise CheckpointError(
                f"{folder}: weights do not fit the configured network ({len(wrong)} differ, first "
                f"{wrong[0]}); the model was saved by an incompatible version"
            )
        denoiser.network.load_state_dict(weights)
        denoiser = denoiser.reschedule(_schedules(config))
        model = cls(domain, denoiser, config, checkpoint.part("reference"), checkpoint.card,
                    name or str(folder), checkpoint.digest)  # fmt: skip
        for text in config.get("guides", ()):
            label, settings = parse_guide(text)
            model = model.guided(label, **settings)
        model._brought = list(model.guides)
        return model

    def _guidance(self, targets: Mapping[str, Target]) -> float:
        """The model's own weight: one for all properties, or the mean of those of the targets."""
        own = self.config.get("guidance", 0.0)
        if not isinstance(own, Mapping):
            return float(own)
        weights = [float(own.get(name, 0.0)) for name in targets]
        return sum(weights) / len(weights) if weights else 0.0

    def _settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = self.sampler.config()
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"unknown sampler setting {unknown[0]!r}; known: {', '.join(known)}")
        return dict(given)


def _schedules(config: Mapping[str, Any]) -> dict[str, Schedule]:
    """Schedules of fields at sampling that differ from those of training."""
    return {k: schedule_from_config(v) for k, v in config.get("schedules", {}).items()}


def _guide_name(label: str) -> str:
    return label.partition(":")[0]


def load(name: str | Path) -> Model:
    """A bundled model by name (``"molecules/qm9-gfn2"``), a domain's default, or a folder.

    Raises:
        InputError: no such model; the message lists those that exist.
        CheckpointError: the model's files are damaged.
    """
    bundled = bundled_models()
    key = str(name)
    if key in bundled:
        return Model.from_folder(bundled[key], key)
    if locate(name).is_dir():
        return Model.from_folder(name)
    from sciflow.domain import names

    if key in names():
        default = get_domain(key).default_model
        if default in bundled:
            return Model.from_folder(bundled[default], default)
    raise InputError(
        f"no model {key!r}: neither a folder nor one of {', '.join(sorted(bundled)) or '(none)'}"
    )
