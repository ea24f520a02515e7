r"""How well a model of sequences predicts sequences that it never saw, in the units of n-grams.

The bound of :class:`~sciflow.likelihood.TokenLikelihood` on −log p(x), summed over a set of
sequences and divided by its residues, is exponentiated as the mean log-likelihood of an n-gram is:

    PPL ≤ exp( Σ_n bound(x_n) / Σ_n L_n ).

It is exact for a model whose conditionals are those of one joint distribution. What is random in it
is which residues are masked; with b_n the estimate of a sequence and e_n its standard error,

    sd(log PPL) = (Σ_n e_n²)^{1/2} / Σ_n L_n,

an upper estimate, since the strata spread better than independent draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from domains.proteins.chain import Chain
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators.sequences import NGram
from domains.proteins.inverse_folding import folded_state
from domains.proteins.letters import codes
from domains.proteins.residue_data import sequence_chain
from domains.proteins.sequence_encoding import encode
from sciflow.denoisers import Denoiser
from sciflow.domain import Progress
from sciflow.errors import InputError
from sciflow.likelihood import TokenLikelihood
from sciflow.random import Draws
from sciflow.state import State

__all__ = ["Perplexity", "baselines", "folded_perplexity", "log_likelihoods", "perplexity"]


@dataclass(frozen=True)
class Perplexity:
    """What is known of a model on a set of sequences.

    Attributes:
        value: upper bound on the perplexity a residue.
        error: standard error of ``value`` from the masks drawn, with these very sequences.
        residues: how many were predicted.
        per_sequence: bound on the log-likelihood of each sequence, nats.
    """

    value: float
    error: float
    residues: int
    per_sequence: tuple[float, ...]


def perplexity(
    denoiser: Denoiser,
    sequences: Sequence[str],
    *,
    strata: int = 8,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress | None = None,
) -> Perplexity:
    """The bound over a set of sequences.

    Args:
        denoiser: of the field ``residues`` under absorbing corruption.
        sequences: of the twenty amino acids.
        strata: network calls a sequence. With hundreds of sequences a few are enough.
        seed: of the masks; those of sequence i depend on (seed, i) alone.
        batch_size: sequences a call; changes speed only.
        progress: told (sequences done, all).

    Raises:
        InputError: no sequences, or a letter that is no amino acid.
    """
    return _perplexity(
        denoiser, [len(s) for s in sequences],
        lambda rows: encode([sequence_chain(sequences[i]) for i in rows]),
        strata, seed, batch_size, progress,
    )  # fmt: skip


def folded_perplexity(
    denoiser: Denoiser,
    encoding: Encoding,
    chains: Sequence[Chain],
    *,
    strata: int = 8,
    seed: int = 0,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Perplexity:
    """The bound on −log p(sequence | backbone): how well a model of both knows what folds so.

    Args:
        denoiser: of frames and residues.
        encoding: of the model.
        chains: with all their atoms, and residues of the twenty.
        strata, seed, batch_size, progress: as of :func:`perplexity`.

    Raises:
        InputError: no chains, missing atoms or unknown residues.
    """
    for chain in chains:
        codes(chain.sequence)
    return _perplexity(
        denoiser, [len(c) for c in chains],
        lambda rows: folded_state(encoding, [chains[i] for i in rows]),
        strata, seed, batch_size, progress,
    )  # fmt: skip


def _perplexity(
    denoiser: Denoiser, sizes: Sequence[int], states: Callable[[list[int]], State], strata: int,
    seed: int, batch_size: int, progress: Progress | None,
) -> Perplexity:  # fmt: skip
    """Of the states of some rows, whose residues are asked for and whose other fields are given."""
    if not sizes:
        raise InputError("a perplexity needs at least one sequence")
    values, errors = torch.zeros(2, len(sizes), dtype=torch.float64).unbind(0)
    likelihood = TokenLikelihood(strata)
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    with torch.no_grad():
        for begin in range(0, len(order), batch_size):
            rows = order[begin : begin + batch_size]
            bound = likelihood(denoiser, states(rows), Draws(seed, rows))
            values[rows], errors[rows] = bound.log_probability, bound.standard_error
            if progress is not None:
                progress(begin + len(rows), len(order))
    residues = sum(sizes)
    value = math.exp(-float(values.sum()) / residues)
    error = value * float(errors.square().sum().sqrt()) / residues
    return Perplexity(value, error, residues, tuple(values.tolist()))


def log_likelihoods(denoiser: Denoiser, sequences: Sequence[str], strata: int = 32) -> list[float]:
    """Bound on log p a residue of each sequence, nats: how natural each looks to a model."""
    found = perplexity(denoiser, sequences, strata=strata).per_sequence
    return [value / len(s) for value, s in zip(found, sequences, strict=True)]


def baselines(train: Sequence[str], held_out: Sequence[str]) -> dict[str, float]:
    """Perplexities of n-grams counted on ``train``, with and without knowledge of the start.

    ``unigram``, ``bigram`` and ``trigram`` know where a sequence begins; the last two also appear
    as ``…_no_start``, as they are often quoted.
    """
    names = ("unigram", "bigram", "trigram")
    values = {}
    for order, name in enumerate(names, start=1):
        values[name] = NGram(order).fit(train).perplexity(held_out)
        if order > 1:
            model = NGram(order, start=False).fit(train)
            values[f"{name}_no_start"] = model.perplexity(held_out)
    return values
