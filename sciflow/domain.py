"""The contract of a science: what an adapter supplies so that the core can serve it.

A :class:`Domain` translates between files of its field and states, names its network presets, and
judges samples with its own metrics and oracles. It is found by name: a literal table holds our own
(``sciflow list``), the entry-point group ``sciflow.domains`` adds third parties'. The suite in
:mod:`sciflow.testing` checks a domain; it is "in" when a ten-line subclass passes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sciflow.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from sciflow.denoisers import NetworkDenoiser
    from sciflow.guides import Guide
    from sciflow.model import Model
    from sciflow.objectives import DenoisingObjective
    from sciflow.predictors import PropertyPredictor
    from sciflow.random import Draws
    from sciflow.state import Context, State
    from sciflow.targets import Target
    from sciflow.tasks import Task
    from sciflow.training.prepared import TrainingData

__all__ = [
    "DOMAINS",
    "Domain",
    "Option",
    "OracleAnswer",
    "Progress",
    "Property",
    "Relaxed",
    "get_domain",
    "names",
]

Progress = Callable[[int, int], None]
"""Told (done, total) while long work goes on."""


@dataclass(frozen=True)
class Property:
    """A quantity that can be asked for: its unit and one line of explanation."""

    unit: str
    summary: str


@dataclass(frozen=True)
class Option:
    """Something that a task of a domain is told by: what stands for its value, and one line."""

    metavar: str
    summary: str


@dataclass(frozen=True)
class OracleAnswer:
    """What an oracle says of one record.

    Attributes:
        values: ``{property: number}``; empty where it failed.
        failure: why it failed, else empty.
        seconds: what the call took.
    """

    values: dict[str, float] = field(default_factory=dict)
    failure: str = ""
    seconds: float = 0.0


@dataclass(frozen=True)
class Relaxed:
    """A record at the nearest minimum of its domain's energy.

    Attributes:
        record: what it became, ``None`` where that failed.
        values: what the way there tells, e.g. ``{"relax_rmsd": Å}``; columns of ``samples.csv``.
        failure: why it failed, else empty.
    """

    record: Any | None
    values: dict[str, float] = field(default_factory=dict)
    failure: str = ""


class Domain(ABC):
    """One science. Records are the domain's own objects (a molecule, a chain, a series).

    Class attributes:
        name: of the folder, the command and the model's prefix.
        summary: one line for ``sciflow list``.
        default_model: bundled model used where none is named.
        properties: what can be asked for as a target.
        requests: those of them that every model can be asked for, trained on them or not: sizes.
        options: of tasks (:mod:`sciflow.tasks`), by name: ``--name`` of ``sciflow sample``.
        datasets: ``{name: one line}`` of data sets that :meth:`dataset` knows.
        packages: distributions whose versions a run records beside torch's and numpy's.
        training: ``steps``, ``batch_size`` and ``lr`` where ``sciflow train`` is not told them.
            ``steps`` may be a pair: one pass over the data, within these bounds.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    default_model: ClassVar[str]
    properties: ClassVar[Mapping[str, Property]]
    datasets: ClassVar[Mapping[str, str]]
    packages: ClassVar[Sequence[str]] = ()
    training: ClassVar[Mapping[str, Any]] = {}
    requests: ClassVar[Sequence[str]] = ()
    options: ClassVar[Mapping[str, Option]] = {}

    # --- training ---------------------------------------------------------------------------

    @abstractmethod
    def presets(self) -> Sequence[str]:
        """Names of network presets, the default first."""

    def require_preset(self, name: str) -> None:
        """Check a preset's name.

        Raises:
            InputError: there is none of that name; the message lists those there are.
        """
        if name not in self.presets():
            raise InputError(f"unknown preset {name!r}; known: {', '.join(self.presets())}")

    def require_file(self, source: str | Path, allowed: str) -> Path:
        """A user's file or folder, where ``source`` is no name of a data set.

        Args:
            source: as it was given.
            allowed: kinds of files and names of data sets, for the message.

        Raises:
            InputError: there is no such file.
        """
        if not Path(source).exists():
            raise InputError(f"neither a file nor a data set; {allowed}", source)
        return Path(source)

    @abstractmethod
    def dataset(self, source: str | Path, progress: Progress | None = None) -> Any:
        """A data set by name, or a user's own file in a format of the field."""

    def build_dataset(
        self, source: Path, out: Path, *, jobs: int = -1, seed: int = 7, limit: int | None = None
    ) -> list[InputError]:
        """Make a data set file from raw records (a list of names, say), resumably.

        Args:
            source: the user's file.
            out: what to write; :meth:`dataset` reads it.
            jobs: worker processes, -1 for every core.
            seed: of whatever is random.
            limit: only the first so many records.

        Returns:
            Why each record that could not be used was left out.
        """
        raise InputError(f"{self.name}: data sets of this domain need no building; train on files")

    @abstractmethod
    def prepare(
        self,
        dataset: Any,
        preset: str,
        conditions: Sequence[str],
        like: Mapping[str, Any] | None = None,
    ) -> tuple[dict[str, Any], TrainingData, TrainingData]:
        """(configuration of a new model, training tensors, validation tensors).

        Args:
            dataset: what :meth:`dataset` gave.
            preset: of the network.
            conditions: properties that the model shall be able to be asked for.
            like: the configuration of a model to go on from, instead of preset and conditions: its
                vocabulary, scale and statistics are kept, so that its weights fit.
        """

    @abstractmethod
    def denoiser(self, config: Mapping[str, Any]) -> NetworkDenoiser:
        """The denoiser that a configuration describes, with fresh weights."""

    @abstractmethod
    def objective(self, config: Mapping[str, Any]) -> DenoisingObjective:
        """The training objective of that configuration."""

    def predictor_config(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The configuration of a predictor of all conditions of a model's configuration."""
        raise InputError(f"{self.name}: this domain has no network that predicts properties")

    def predictor(self, config: Mapping[str, Any]) -> PropertyPredictor:
        """The predictor that :meth:`predictor_config` describes, with fresh weights."""
        raise InputError(f"{self.name}: this domain has no network that predicts properties")

    def calibrate(self, model: Model, dataset: Any) -> dict[str, Any]:
        """What the configuration of a model just trained gets besides, fitted on held-out data.

        Nothing by default. ``dataset`` is that of :meth:`dataset`.
        """
        return {}

    def guides(self) -> Mapping[str, Guide]:
        """Guidance by this domain's own oracles, by name; see :mod:`sciflow.guides`."""
        return {}

    # --- sampling ---------------------------------------------------------------------------

    @abstractmethod
    def reference(self, data: Any) -> dict[str, Tensor]:
        """Small tensors of the training set kept with a model: sizes, property values."""

    @abstractmethod
    def context(
        self,
        config: Mapping[str, Any],
        reference: Mapping[str, Tensor],
        draws: Draws,
        targets: Mapping[str, Target],
    ) -> Context:
        """Sizes and conditions of the samples to be drawn, one a row of ``draws``."""

    def task(self, model: Model, options: Mapping[str, Any], targets: Mapping[str, Target]) -> Task:
        """The task that options ask for; those given are among :attr:`options`.

        Args:
            model: that is to sample.
            options: as text, or as Python objects where the domain takes them.
            targets: what is asked for besides.

        Raises:
            InputError: a value that cannot be used, or options that do not go together.
        """
        raise InputError(f"{self.name} has no tasks")

    @abstractmethod
    def encode(self, config: Mapping[str, Any], records: Sequence[Any]) -> State:
        """Records as a batch of clean data."""

    @abstractmethod
    def decode(self, config: Mapping[str, Any], state: State) -> list[Any]:
        """A batch of clean data as records."""

    # --- files ------------------------------------------------------------------------------

    @abstractmethod
    def read(self, path: str | Path, dropped: list[InputError] | None = None) -> list[Any]:
        """Records of a file of the field.

        Args:
            path: the file.
            dropped: collects the error of each record that could not be used.
        """

    @abstractmethod
    def write(self, records: Sequence[Any], folder: Path) -> list[Path]:
        """Write records into ``folder`` in the formats of the field; the files, main one first."""

    def annotate(self, record: Any, title: str, values: Mapping[str, float]) -> Any:
        """The record with a title and numbers that its files carry, where the format can."""
        return record

    # --- judging ----------------------------------------------------------------------------

    @abstractmethod
    def verdicts(self, records: Sequence[Any]) -> list[str]:
        """For each record, empty if it is sound, else why not."""

    @abstractmethod
    def describe(self, records: Sequence[Any]) -> list[dict[str, Any]]:
        """For each record the columns that identify it in ``samples.csv`` (a SMILES, a length)."""

    @abstractmethod
    def oracle(
        self,
        records: Sequence[Any],
        properties: Sequence[str],
        jobs: int = -1,
        progress: Progress | None = None,
    ) -> list[OracleAnswer]:
        """Measure properties of records; failures are answers, not exceptions."""

    def relax(
        self, records: Sequence[Any], jobs: int = -1, progress: Progress | None = None
    ) -> list[Relaxed]:
        """Move records to the nearest minimum of an energy; failures are answers, not exceptions.

        Raises:
            InputError: this domain has no such energy.
        """
        raise InputError(f"{self.name} cannot be relaxed: the domain has no energy to do it with")

    @abstractmethod
    def evaluate(self, records: Sequence[Any], thorough: bool = False) -> dict[str, float]:
        """Metrics of a set of records, in the field's own terms."""

    def held_out(self, n: int) -> list[Any]:
        """At most ``n`` real records that no bundled model was trained on; empty if none."""
        return []

    @abstractmethod
    def picture(self, record: Any) -> str:
        """An SVG picture of a record, for reports."""

    def viewer(self, records: Sequence[Any]) -> str:
        """HTML of an interactive view of records, self-contained; empty where there is none."""
        return ""

    def plots(self, records: Sequence[Any]) -> list[tuple[str, str]]:
        """(SVG, caption) of plots of a set of records, for reports; empty where there are none."""
        return []

    # --- contract tests ---------------------------------------------------------------------

    @abstractmethod
    def examples(self, n: int, seed: int = 0) -> list[Any]:
        """Small valid records, made without data files."""


DOMAINS: dict[str, str] = {
    "molecules": "domains.molecules.adapter:Molecules",
    "proteins": "domains.proteins.adapter:Proteins",
    "timeseries": "domains.timeseries.adapter:TimeSeries",
}
"""Our own adapters: name → "module:Class"."""


def names() -> dict[str, str]:
    """Every known domain, name → "module:Class", third parties' included; imports none of them."""
    from importlib.metadata import entry_points

    others = {e.name: e.value for e in entry_points(group="sciflow.domains")}
    return {**others, **DOMAINS}


def get_domain(name: str) -> Domain:
    """The domain of that name.

    Raises:
        InputError: unknown name, or its dependencies are not installed.
    """
    known = names()
    if name not in known:
        raise InputError(f"unknown domain {name!r}; known: {', '.join(sorted(known))}")
    module, _, cls = known[name].partition(":")
    try:
        domain: Domain = getattr(import_module(module), cls)()
    except ImportError as error:
        raise InputError(
            f"domain {name!r} cannot be loaded: {error}; install its dependencies"
        ) from error
    return domain
