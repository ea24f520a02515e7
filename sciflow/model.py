"""A trained model as a user meets it: load it, sample it, save what came out.

    model = sciflow.load("molecules/qm9-gfn2")
    out = model.sample(100, target={"gap": 6.0}, seed=0)
    out.save("run/")
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sciflow.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from sciflow.denoisers import Denoiser, NetworkDenoiser
from sciflow.domain import Domain, Progress, get_domain
from sciflow.errors import CheckpointError, InputError
from sciflow.guidance import ClassifierFree
from sciflow.random import Draws
from sciflow.samplers import Sampler
from sciflow.schedules import schedule_from_config
from sciflow.targets import Target, as_targets

__all__ = ["Model", "Samples", "bundled_models", "load"]


@dataclass(frozen=True)
class Samples:
    """What :meth:`Model.sample` made.

    Attributes:
        records: the domain's objects, in order of their numbers; ``None`` where one was dropped.
        targets: ``{property: [n]}``, the value asked of each sample (NaN: not asked for).
        dropped: why, for each dropped sample, ``{number: reason}``.
        calls: network evaluations a sample.
        seconds: wall-clock time.
        settings: everything needed to make the same samples again.
        domain: the adapter that made them.
    """

    records: list[Any | None]
    targets: dict[str, list[float]]
    dropped: dict[int, str]
    calls: int
    seconds: float
    settings: dict[str, Any]
    domain: Domain = field(repr=False)

    def __len__(self) -> int:
        return len(self.records)

    @property
    def kept(self) -> list[Any]:
        """The records that were not dropped."""
        return [r for r in self.records if r is not None]

    def save(self, folder: str | Path, oracle: Sequence[str] | None = None, report: bool = True,
             progress: Progress | None = None) -> Path:  # fmt: skip
        """Write files of the field, ``samples.csv``, ``metrics.json`` and ``report.html``.

        Args:
            folder: made if absent; files of the same names in it are replaced.
            oracle: properties to measure; default those that were targets.
            report: also make the page.
            progress: told of oracle calls done.
        """
        from sciflow.reports.run import save_run

        return save_run(self, Path(folder), oracle, report, progress)


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
    """

    def __init__(self, domain: Domain, denoiser: Denoiser, config: Mapping[str, Any],
                 reference: Mapping[str, Tensor], card: str = "", name: str = "",
                 digest: str = ""):  # fmt: skip
        self.domain, self.denoiser, self.config = domain, denoiser.eval(), dict(config)
        self.reference, self.card, self.name, self.digest = dict(reference), card, name, digest
        self.sampler = Sampler(**self.config.get("sampler", {}))

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
        first: int = 0,
        batch_size: int = 64,
        sampler: Mapping[str, Any] | None = None,
        device: str = "cpu",
        progress: Progress | None = None,
    ) -> Samples:
        """Draw ``n`` samples, numbered from ``first``; sample i depends on (seed, i) alone.

        Args:
            n: how many.
            target: property → value or range, in the property's unit.
            seed: any integer.
            guidance: weight of classifier-free guidance; 0 is none, default the model's own.
            first: number of the first sample, so that a large run can be sharded.
            batch_size: samples a network call; changes speed and memory only.
            sampler: settings that differ from the model's, e.g. ``{"steps": 100}``.
            device: where to compute.
            progress: told (samples done, n).
        """
        if n < 1:
            raise InputError(f"the number of samples must be at least 1, not {n}")
        targets = as_targets(target or {}, self.properties)
        chosen = replace(self.sampler, **self._settings(sampler or {}))
        weight = self.config.get("guidance", 0.0) if guidance is None else guidance
        denoiser = self.denoiser
        if weight > 0 and targets:
            denoiser = ClassifierFree(denoiser, weight)
        denoiser = denoiser.to(device)

        begin = time.monotonic()
        draws = Draws(seed, torch.arange(first, first + n))
        context = self.domain.context(self.config, self.reference, draws, targets)
        records: list[Any | None] = [None] * n
        dropped: dict[int, str] = {}
        calls = 0
        # Batches of similar size waste little on padding; the order cannot change a sample.
        order = context.lengths.argsort(stable=True)
        for rows in order.split(batch_size):
            part = context.apply(lambda x, rows=rows: x[rows])
            longest = int(part.lengths.max()) if part.mask.ndim == 2 else None
            if longest is not None:
                part = part.replace(mask=part.mask[:, :longest])
            report = chosen(denoiser, part.apply(lambda x: x.to(device)), draws.rows(rows))
            calls = report.calls
            decoded = self.domain.decode(self.config, report.state.to("cpu"))
            for row, record, broken in zip(rows.tolist(), decoded, report.broken.tolist(), strict=True):
                if broken:
                    dropped[first + row] = f"not finite: {report.where}"
                else:
                    records[row] = record
            if progress is not None:
                progress(sum(r is not None for r in records) + len(dropped), n)
        return Samples(
            records,
            {k: v.tolist() for k, v in context.conditions.items() if k in targets},
            dict(sorted(dropped.items())),
            calls * (2 if weight > 0 and targets else 1),
            time.monotonic() - begin,
            {
                "model": self.name,
                "model_sha256": self.digest,
                "n": n,
                "first": first,
                "seed": seed,
                "targets": {k: str(v) for k, v in targets.items()},
                "guidance": weight if targets else 0.0,
                "batch_size": batch_size,
                "sampler": chosen.config(),
            },
            self.domain,
        )

    def guided(self, wrap: Callable[[Denoiser], Denoiser]) -> Model:
        """The same model with its denoiser wrapped."""
        return Model(self.domain, wrap(self.denoiser), self.config, self.reference, self.card,
                     self.name, self.digest)  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write the model as a checkpoint folder."""
        if not isinstance(self.denoiser, NetworkDenoiser):
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
        schedules = {k: schedule_from_config(v) for k, v in config.get("schedules", {}).items()}
        return cls(domain, denoiser.reschedule(schedules), config, checkpoint.part("reference"),
                   checkpoint.card, name or str(folder), checkpoint.digest)  # fmt: skip

    def _settings(self, given: Mapping[str, Any]) -> dict[str, Any]:
        known = self.sampler.config()
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise InputError(f"unknown sampler setting {unknown[0]!r}; known: {', '.join(known)}")
        return dict(given)


def bundled_models() -> dict[str, Path]:
    """Models that ship with the adapters, ``{"domain/name": folder}``."""
    from importlib.util import find_spec

    from sciflow.domain import names

    found = {}
    for domain, target in names().items():
        package = target.partition(":")[0].rpartition(".")[0]
        spec = find_spec(package) if package else None
        for root in (spec.submodule_search_locations or []) if spec else []:
            for manifest in sorted(Path(root).glob("models/*/manifest.json")):
                found[f"{domain}/{manifest.parent.name}"] = manifest.parent
    return found


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
    if Path(name).is_dir():
        return Model.from_folder(name)
    from sciflow.domain import names

    if key in names():
        default = get_domain(key).default_model
        if default in bundled:
            return Model.from_folder(bundled[default], default)
    raise InputError(
        f"no model {key!r}: neither a folder nor one of {', '.join(sorted(bundled)) or '(none)'}"
    )
