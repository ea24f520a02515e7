"""How alike chains are: TM-scores, diversity of a set, novelty against known structures.

TM-align (Zhang and Skolnick, Nucleic Acids Res. 33, 2302, 2005) superimposes the CA atoms so that

    TM = max 1/L Σ_i 1 / (1 + (d_i / d_0(L))²),   d_0 = 1.24 (L - 15)^{1/3} - 1.8 Å,

is largest; above 0.5 two chains have the same fold, 0.17 is the level of unrelated ones. It runs in
process through the package ``tmtools`` (extra ``proteins``), 2 to 20 ms a pair at 64 to 128
residues, so novelty looks only at references of nearly the same length, which can hide a match to a
part of a longer chain, and where asked to only at those whose helices and strands lie alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib import Parallel, delayed
from numpy.typing import NDArray

from domains.proteins.chain import Chain
from domains.proteins.evaluators.secondary_structure import dssp, three_states
from sciflow.errors import InputError
from sciflow.subsets import evenly_spread

__all__ = ["diversity", "novelty", "tm_score"]

_SAME_FOLD = 0.5
_PAIRS = 1000
_WINDOW = 0.15
_STRETCHES = 16


def tm_score(a: Chain, b: Chain) -> tuple[float, float]:
    """TM-score of the best superposition, normalised by the length of ``a`` and by that of ``b``.

    Raises:
        InputError: ``tmtools`` is not installed.
    """
    return _tm(_points(a), _points(b))


def diversity(
    chains: Sequence[Chain], pairs: int = _PAIRS, clusters: bool = True, jobs: int = 1
) -> dict[str, float]:
    """How different the members of a set are.

    ``tm_pairwise`` and ``tm_pairwise_mean``, median and mean TM-score of pairs, each the mean of
    its two normalisations; ``clusters``, the number of clusters over the number of chains: a chain
    joins the first earlier centre with which it has TM > 0.5, else becomes one.

    Args:
        chains: the set.
        pairs: at most so many, evenly spread over all of them.
        clusters: whether to cluster too.
        jobs: worker processes, -1 for every core.
    """
    points = [_points(chain) for chain in chains]
    n = len(points)
    if n < 2:
        return {}
    i, j = np.triu_indices(n, 1)
    # Evenly spaced places in the upper triangle touch every row in proportion to its length.
    keep = evenly_spread(len(i), pairs)
    score = _many([(points[a], points[b]) for a, b in zip(i[keep], j[keep], strict=True)], jobs)
    mean = np.mean(score, 1)
    values = {"tm_pairwise": float(np.median(mean)), "tm_pairwise_mean": float(mean.mean())}
    if clusters:
        centres: list[Any] = []
        for x in points:
            if not any(np.mean(_tm(x, c)) > _SAME_FOLD for c in centres):
                centres.append(x)
        values["clusters"] = len(centres) / n
    return values


def novelty(
    chains: Sequence[Chain],
    references: Sequence[Chain],
    window: float = _WINDOW,
    most: int | None = None,
    jobs: int = 1,
) -> NDArray[np.float64]:
    """The highest TM-score of each chain to any reference, normalised by the chain; ``[M]``.

    Args:
        chains: samples.
        references: known structures, the training set for instance.
        window: only references whose length is within this share of the sample's are tried.
        most: of these only so many, those whose secondary structure along the chain is nearest.
            The answer is then a lower bound: with 100 of some 520 it was the same for four of
            seven held-out chains, and lower by 0.03 in the mean.
        jobs: worker processes, -1 for every core.

    Returns:
        NaN for a chain without a reference of such a length.
    """
    known = [_points(chain) for chain in references]
    sizes = np.array([len(x) for x, _ in known])
    if most is not None:
        ours, theirs = _profiles(chains), _profiles(references)
    tasks, owner = [], []
    for row, chain in enumerate(chains):
        x = _points(chain)
        near = np.flatnonzero(np.abs(sizes - len(chain)) <= window * len(chain))
        if most is not None:
            away = np.abs(theirs[near] - ours[row]).sum(1)
            near = near[np.argsort(away, kind="stable")[:most]]
        tasks += [(x, known[k]) for k in near]
        owner += [row] * len(near)
    best = np.full(len(chains), np.nan)
    if tasks:
        np.fmax.at(best, owner, np.asarray(_many(tasks, jobs))[:, 0])
    return best


def _profiles(chains: Sequence[Chain]) -> NDArray[np.float64]:
    """Shares of helix and strand in sixteen stretches of each chain, ``[M, 32]``."""
    profiles = np.zeros((len(chains), 2, _STRETCHES))
    for row, text in enumerate(dssp(chains)):
        states = np.array([list(three_states(text))] * 2) == [["H"], ["E"]]
        place = np.arange(len(text)) * _STRETCHES // max(len(text), 1)
        for k in range(2):
            profiles[row, k] = np.bincount(place, states[k], _STRETCHES)
        profiles[row] /= np.maximum(np.bincount(place, minlength=_STRETCHES), 1)
    return profiles.reshape(len(chains), -1)


Points = tuple[NDArray[np.float64], str]


def _points(chain: Chain) -> Points:
    here: NDArray[np.bool_] = np.asarray(np.isfinite(chain.ca).all(1))
    letters = "".join(c for c, ok in zip(chain.sequence, here, strict=True) if ok)
    return np.ascontiguousarray(chain.ca[here], np.float64), letters


def _tm(a: Points, b: Points) -> tuple[float, float]:
    try:
        from tmtools import tm_align
    except ImportError:
        raise InputError(
            "TM-scores need the package tmtools: pip install 'tmtools>=0.3' (extra 'proteins')"
        ) from None
    # TM-align asks for three residues or more.
    if min(len(a[0]), len(b[0])) < 3:
        return 0.0, 0.0
    answer = tm_align(a[0], b[0], a[1], b[1])
    return answer.tm_norm_chain1, answer.tm_norm_chain2


def _many(tasks: Sequence[tuple[Points, Points]], jobs: int) -> list[tuple[float, float]]:
    if jobs == 1 or len(tasks) < 64:
        return [_tm(a, b) for a, b in tasks]
    parts = np.array_split(np.arange(len(tasks)), min(len(tasks), 64))
    answers = Parallel(n_jobs=jobs)(
        delayed(_part)([tasks[k] for k in part]) for part in parts if len(part)
    )
    return [score for part in answers for score in part]


def _part(tasks: Sequence[tuple[Points, Points]]) -> list[tuple[float, float]]:
    return [_tm(a, b) for a, b in tasks]
