"""Is the stated graph one whole closed-shell molecule, and is it new?

A molecule is valid when it has at least two atoms (H₂ counts, a lone atom or ion does not), finite
coordinates if any, passes RDKit's sanitisation exactly as stated — no implicit hydrogens, no
normalisation of charges, so a neutral five-bonded nitro nitrogen fails — is one fragment, has no
radical electron and an even number of electrons (elements without a defined valence, such as
transition metals, cannot be judged and are refused), and is the same molecule after being written
to SMILES and read back. Identity is the canonical SMILES of the constitution, stereochemistry left
out (as QM9's own list leaves it out); charged but closed-shell species are valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem.rdMolDescriptors import CalcMolFormula

from domains.molecules.evaluators.graph import strict_graph
from domains.molecules.molecule import Molecule

__all__ = ["Identities", "Verdict", "chemistry_rates", "is_valid"]

_SANITIZE = (
    Chem.SanitizeFlags.SANITIZE_ALL
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUP
    ^ Chem.SanitizeFlags.SANITIZE_CLEANUP_ORGANOMETALLICS
)
_LONGEST_SMILES = 20_000


@dataclass(frozen=True)
class Verdict:
    """Whether a molecule is valid, and why not.

    Attributes:
        valid: the verdict.
        reason: what is wrong; empty for a valid molecule.
        smiles: canonical SMILES of the constitution, ``None`` unless valid.
    """

    valid: bool
    reason: str = ""
    smiles: str | None = None


def is_valid(molecule: Molecule) -> Verdict:
    """Judge one molecule by the rules of this module. Never raises."""
    if len(molecule) == 0:
        return Verdict(False, "no atoms")
    if len(molecule) == 1:
        return Verdict(False, "a lone atom")
    if molecule.positions is not None and not np.isfinite(molecule.positions).all():
        return Verdict(False, "a coordinate is not finite")
    try:
        graph = strict_graph(molecule)
    except ValueError as error:
        return Verdict(False, str(error))
    with rdBase.BlockLogs():
        return _judge(graph)


def _judge(graph: Chem.Mol) -> Verdict:
    valence = Chem.GetPeriodicTable().GetDefaultValence
    for atom in graph.GetAtoms():
        if valence(atom.GetAtomicNum()) < 0:
            return Verdict(False, f"{atom.GetSymbol()} has no defined valence to judge by")
    if len(Chem.GetMolFrags(graph)) > 1:
        return Verdict(False, "more than one fragment")
    try:
        Chem.SanitizeMol(graph, sanitizeOps=_SANITIZE)
    except (ValueError, RuntimeError) as error:
        return Verdict(False, f"sanitisation: {error}")
    if any(atom.GetNumRadicalElectrons() for atom in graph.GetAtoms()):
        return Verdict(False, "a radical")
    electrons = sum(a.GetAtomicNum() - a.GetFormalCharge() for a in graph.GetAtoms())
    if electrons % 2:
        return Verdict(False, "an odd number of electrons")
    try:
        smiles = _constitution(graph)
        again = Chem.MolFromSmiles(smiles)
        same = (
            again is not None
            and _constitution(again) == smiles
            and CalcMolFormula(again) == CalcMolFormula(graph)
        )
    except (ValueError, RuntimeError) as error:
        return Verdict(False, f"SMILES: {error}")
    if not same:
        return Verdict(False, f"its SMILES {smiles} reads back as another molecule")
    return Verdict(True, "", smiles)


def _constitution(graph: Chem.Mol) -> str:
    return str(Chem.MolToSmiles(Chem.RemoveHs(graph), isomericSmiles=False))


class Identities(frozenset[str]):
    """Canonical constitutions of a list of SMILES: made once, it answers every novelty question."""

    @classmethod
    def of(cls, smiles: Iterable[str]) -> Identities:
        """Canonicalise ``smiles`` (any writing, explicit hydrogens allowed, about 0.2 ms each).

        An existing :class:`Identities` is returned as it is. What RDKit cannot read is left out:
        nothing generated can equal it.
        """
        if isinstance(smiles, Identities):
            return smiles
        found = set()
        with rdBase.BlockLogs():
            for text in smiles:
                graph = Chem.MolFromSmiles(text) if len(text) <= _LONGEST_SMILES else None
                if graph is not None and graph.GetNumAtoms():
                    found.add(_constitution(graph))
        return cls(found)


def chemistry_rates(
    molecules: Sequence[Molecule], training_smiles: Iterable[str] | None = None
) -> dict[str, float]:
    """Validity, uniqueness and novelty.

    Args:
        molecules: the generated set.
        training_smiles: SMILES of the training set, or an :class:`Identities` made from them.

    Returns:
        ``validity``: valid molecules / all molecules. ``uniqueness``: distinct constitutions /
        valid molecules. ``novelty`` (only with ``training_smiles``): constitutions not among the
        training set's / distinct constitutions. ``valid_unique`` and ``valid_unique_novel``: the
        same counts / all molecules. NaN where a denominator is zero.
    """
    return rates_of([is_valid(m) for m in molecules], training_smiles)


def rates_of(
    verdicts: Sequence[Verdict], training_smiles: Iterable[str] | None = None
) -> dict[str, float]:
    """:func:`chemistry_rates` of verdicts already made."""
    valid = [v.smiles for v in verdicts if v.smiles is not None]
    distinct = set(valid)

    def rate(count: int, total: int) -> float:
        return count / total if total else float("nan")

    rates = {
        "validity": rate(len(valid), len(verdicts)),
        "uniqueness": rate(len(distinct), len(valid)),
        "valid_unique": rate(len(distinct), len(verdicts)),
    }
    if training_smiles is not None:
        new = len(distinct - Identities.of(training_smiles))
        rates["novelty"] = rate(new, len(distinct))
        rates["valid_unique_novel"] = rate(new, len(verdicts))
    return rates
