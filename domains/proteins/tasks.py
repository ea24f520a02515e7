"""From the options of ``sciflow sample proteins`` to the task that they ask for."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from torch import Tensor

from domains.proteins.chain import Chain
from domains.proteins.contigs import Contig, parse_contig
from domains.proteins.encoding import Encoding
from domains.proteins.infilling import Infilling
from domains.proteins.inverse_folding import InverseFolding
from domains.proteins.io import ReadResult, read_chains
from domains.proteins.scaffolding import Scaffolding
from domains.proteins.sequence_encoding import is_sequence_model
from domains.proteins.symmetry import Oligomers, parse_symmetry
from sciflow.errors import InputError
from sciflow.model import Model
from sciflow.random import Draws
from sciflow.state import Context
from sciflow.targets import Target
from sciflow.tasks import Task

__all__ = ["fixed_contig", "make_task"]

_TASKS = ("motif", "redesign", "backbone", "template", "symmetry")
"""The option that asks for each task."""
_GOES_WITH = {
    "contig": ("motif",),
    "fix": ("redesign", "backbone"),
    "noise": ("redesign",),
    "chain": ("redesign", "backbone"),
}
"""The others, and the tasks that they say more of."""
_KEPT_NOISE = 0.5

_T = TypeVar("_T")


def make_task(model: Model, options: Mapping[str, Any], targets: Mapping[str, Target]) -> Task:
    """The task of some options; see :attr:`domains.proteins.adapter.Proteins.options`.

    Args:
        model: that is to sample.
        options: text, a :class:`~pathlib.Path` of a file, or a
            :class:`~domains.proteins.contigs.Contig` whose residues were found.
        targets: what is asked for besides; ``length`` is that of a design.

    Raises:
        InputError: options that do not go together, a file that cannot be read, a value that makes
            no sense for the file or the model.
    """
    asked = [name for name in _TASKS if name in options]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} are two tasks; ask for one of them")
    for name, tasks in _GOES_WITH.items():
        if name in options and not set(tasks) & set(asked):
            if name == "contig" and isinstance(options[name], Contig):
                continue
            needed = " FILE or --".join(tasks)
            raise InputError(f"--{name} says how to use a structure; give --{needed} FILE too")
    if "template" in options:
        return _infilling(model, str(options["template"]), targets)
    if is_sequence_model(model.config):
        name = next(iter(asked), "contig")
        raise InputError(f"this model makes sequences; --{name} needs one of backbones")
    encoding = Encoding.from_config(model.config["encoding"])
    if "symmetry" in options:

        def sizes(draws: Draws) -> Context:
            return model.domain.context(model.config, model.reference, draws, targets)

        return Oligomers(model, parse_symmetry(options["symmetry"]), sizes)
    wanted = _conditions(model, targets)
    if "backbone" in options:
        return _inverse_folding(options, targets, encoding, wanted)
    told = bool(model.config["objective"]["scaffolds"])
    if "redesign" in options:
        return _redesign(options, targets, encoding, wanted, told)
    contig = _contig(options, targets)
    if not len(contig.motif):
        raise InputError(
            "the contig keeps no residues of the motif's file; name some, e.g. A25-46, or leave "
            "--motif out"
        )
    return Scaffolding(encoding, contig, wanted, told)


def fixed_contig(
    text: str, chains: Sequence[Chain], path: Path | None = None
) -> tuple[Contig, Chain]:
    """The contig that keeps the residues ``text`` ("A1-20,A35-60") of a chain, and that chain.

    Args:
        text: residues, in the chain's order.
        chains: of a file, one of which is meant.
        path: of the file.

    Raises:
        InputError: no such residues, several chains, another order, or a chain with gaps.
    """
    parts = [p.strip() for p in re.split(r"[/,]", text) if p.strip()]
    kept = [s.motif for s in parse_contig("/".join(parts), chains, path=path).segments]
    found = [motif for motif in kept if motif is not None]
    if len(found) < len(kept):
        raise InputError(f'--fix {text!r}: name residues to keep, e.g. "A1-20,A35-60"; no lengths')
    if len({motif.chain_id for motif in found}) > 1:
        raise InputError(f"--fix {text!r}: residues of one chain can be kept, not of several")
    chain = _whole(next(c for c in chains if c.chain_id == found[0].chain_id), path)
    places = {name: i for i, name in enumerate(chain.residue_ids)}
    elements, end = list[str](), 0
    for part, motif in zip(parts, found, strict=True):
        first, last = places[motif.residue_ids[0]], places[motif.residue_ids[-1]]
        if first < end:
            raise InputError(f"--fix {text!r}: write the residues in the order of the chain")
        elements += [str(first - end)] * (first > end) + [part]
        end = last + 1
    elements += [str(len(chain) - end)] * (len(chain) > end)
    return parse_contig("/".join(elements), [chain], path=path), chain


def _contig(options: Mapping[str, Any], targets: Mapping[str, Target]) -> Contig:
    given = options.get("contig")
    if isinstance(given, Contig):
        return given
    if given is None:
        raise InputError(
            'a motif needs --contig, what is kept of it and built around it, e.g. "10-40/A25-46/'
            '10-40"'
        )
    path = Path(options["motif"])
    read = read_chains(path)
    return _explained(read, lambda: parse_contig(given, read.chains, _length(targets), path))


def _redesign(
    options: Mapping[str, Any], targets: Mapping[str, Target], encoding: Encoding,
    wanted: Callable[[Draws], dict[str, Tensor]], told: bool,
) -> Task:  # fmt: skip
    if "length" in targets:
        raise InputError("a re-design is as long as its structure; leave --length out")
    path = Path(options["redesign"])
    chain, contig = _subject(options, path)
    text = options.get("noise", _KEPT_NOISE if contig is None else 1.0)
    if contig is None:
        contig = parse_contig(str(len(_whole(chain, path))))
    try:
        time = float(text)
    except (TypeError, ValueError):
        time = math.nan
    if not 0 < time <= 1:
        raise InputError(f"--noise {text}: a number above 0 (nothing changes) to 1 (all is new)")
    return Scaffolding(encoding, contig, wanted, told, chain, time)


def _inverse_folding(
    options: Mapping[str, Any], targets: Mapping[str, Target], encoding: Encoding,
    wanted: Callable[[Draws], dict[str, Tensor]],
) -> Task:  # fmt: skip
    if "length" in targets:
        raise InputError("a sequence is as long as its backbone; leave --length out")
    path = Path(options["backbone"])
    chain, contig = _subject(options, path)
    kept = np.zeros(0, int) if contig is None else contig.sample(Draws(0, [0]))[0].places
    try:
        return InverseFolding(encoding, chain, kept, wanted)
    except InputError as error:
        raise InputError(error.reason, path) from None


def _subject(options: Mapping[str, Any], path: Path) -> tuple[Chain, Contig | None]:
    """The chain of a file that is re-designed, and what ``--fix`` keeps of it, if it is given."""
    read, fix = read_chains(path), str(options.get("fix", "")).strip()
    if not fix:
        return _chosen(read, options, path), None
    contig, chain = _explained(read, lambda: fixed_contig(fix, read.chains, path))
    if "chain" in options and (wanted := _chosen(read, options, path).chain_id) != chain.chain_id:
        raise InputError(
            f"--chain {wanted} and --fix {fix!r} mean two chains; the residues of --fix name the "
            "one that is re-designed",
            path,
        )
    return chain, contig


def _chosen(read: ReadResult, options: Mapping[str, Any], path: Path) -> Chain:
    """The chain that is meant: the file's only one, or that of ``--chain``."""
    known = list(dict.fromkeys(c.chain_id for c in read.chains))
    if "chain" not in options:
        if len(known) > 1:
            raise InputError(
                f"the file has chains {', '.join(known)}, and one is re-designed: say which, "
                f"--chain {known[0]}",
                path,
            )
        return read.chains[0]
    wanted = str(options["chain"]).strip()
    if wanted not in known:
        raise InputError(f"--chain {wanted}: the file has {', '.join(known)}", path)
    return next(c for c in read.chains if c.chain_id == wanted)


def _whole(chain: Chain, path: Path | None) -> Chain:
    if not (chain.complete and chain.unbroken):
        raise InputError(
            f"chain {chain.chain_id} lacks residues or atoms; a re-design needs a structure "
            "without gaps (a motif, --motif and --contig, may have them)",
            path,
        )
    return chain


def _length(targets: Mapping[str, Target]) -> tuple[int, int] | None:
    if "length" not in targets:
        return None
    t = targets["length"]
    low = 1 if math.isinf(t.low) else math.ceil(t.low)
    return low, 10**6 if math.isinf(t.high) else math.floor(t.high)


def _infilling(model: Model, text: str, targets: Mapping[str, Target]) -> Task:
    if not is_sequence_model(model.config):
        raise InputError("this model makes backbones; --template needs one of sequences")
    if "length" in targets:
        raise InputError("a sequence is as long as its template; leave --length out")
    return Infilling(text, _conditions(model, targets))


def _conditions(
    model: Model, targets: Mapping[str, Target]
) -> Callable[[Draws], dict[str, Tensor]]:
    """Wanted properties of the samples of some draws, as without a task."""
    others = {k: t for k, t in targets.items() if k != "length"}

    def conditions(draws: Draws) -> dict[str, Tensor]:
        return model.domain.context(model.config, model.reference, draws, others).conditions

    return conditions


def _explained(read: ReadResult, parse: Callable[[], _T]) -> _T:
    """A contig, or its error with what the reader had to leave out of the file."""
    try:
        return parse()
    except InputError as error:
        refused = [e.reason for e in read.dropped if "is refused" in e.reason]
        if error.path is None or not refused:
            raise
        raise InputError(f"{error.reason} ({refused[0]})", error.path, error.line) from None
