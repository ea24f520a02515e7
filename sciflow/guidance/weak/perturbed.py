r"""The same network with broken attention, as the weak model of :mod:`sciflow.guidance.weak.away`.

* ``identity`` (PAG, Ahn et al. 2024): every token attends to itself alone, A = 1. Where attention
  also carries features of pairs, a token has no partner to hear of;
* ``blur`` (SEG, Hong 2024): queries are blurred over tokens by a Gaussian of width σ, which
  flattens the energy of attention; σ = ∞, their mean, needs no order of the tokens;
* ``shuffle`` (TPG, Rajabi et al. 2025): tokens are permuted at random before a block, and put back
  after it, so that each keeps its features and is told by the wrong ones.

A network that treats its tokens as a set commutes with permutations: shuffling whole tokens, with
their positions and bonds, would change nothing. So features alone are shuffled, while distances,
bonds and biases stay; and where a block has nothing else, shuffling is refused instead of doing
nothing at twice the cost.

A block of attention is any module with linear maps ``qkv`` (queries, keys, values in a row) and
``out`` (the first columns of whose input are the values that attention has mixed), called with the
tokens ``[B, N, dim]`` first. Hooks do the rest while the weak model is asked; the network does not
know.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.guidance.weak.estimates import draws_of
from sciflow.state import State, Times

__all__ = ["Perturbation", "PerturbedAttention", "attention_blocks"]

Perturbation = Literal["identity", "blur", "shuffle"]


def attention_blocks(denoiser: nn.Module) -> list[nn.Module]:
    """The modules that :class:`PerturbedAttention` can reach into, in order."""
    return [
        m
        for m in denoiser.modules()
        if all(isinstance(getattr(m, name, None), nn.Linear) for name in ("qkv", "out"))
    ]


class PerturbedAttention(Denoiser):
    """A denoiser whose network does not attend as it has learned to.

    At the first call the unperturbed network is asked too, to see that there is a difference;
    ``calls`` counts both.

    Args:
        denoiser: the model.
        kind: identity, blur or shuffle; see the module.
        layers: which blocks of attention, from 0; default the one in the middle.
        sigma: of ``blur``, in tokens, for tokens in an order; infinite is the mean.
        seed: of ``shuffle``; samples are told apart by ``context.extras["sample"]``.

    Raises:
        InputError: the network has no such attention, or (at the first call) the perturbation
            leaves its answer as it is.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        kind: Perturbation = "identity",
        layers: Sequence[int] | None = None,
        sigma: float = math.inf,
        seed: int = 0,
    ):
        super().__init__()
        if kind not in get_args(Perturbation):
            known = ", ".join(get_args(Perturbation))
            raise InputError(f"unknown perturbation {kind!r}; known: {known}")
        if not sigma > 0:
            raise InputError(f"queries are blurred by a width above 0, not {sigma}")
        count = len(attention_blocks(denoiser))
        if not count:
            raise InputError(
                "this network has no block of attention (a module with linear maps 'qkv' and "
                "'out') to perturb; use a smaller or less trained model as the weak one instead"
            )
        self.layers = [count // 2] if layers is None else list(layers)
        if not self.layers or not all(0 <= i < count for i in self.layers):
            raise InputError(f"layers are numbers from 0 to {count - 1}, not {self.layers}")
        self.denoiser, self.paths = denoiser, denoiser.paths
        self.kind, self.sigma, self.seed = kind, sigma, seed
        self.seen, self.calls = False, 0

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        """The estimate of the perturbed network."""
        with self._perturbed(state):
            weak = self.denoiser(state, t, previous)
        self.calls += 1
        # Up to two tokens may well be their own mean, or left where they are by chance.
        if not self.seen and bool((state.context.lengths > 2).any()):
            _check_different(self.kind, self.denoiser(state, t, previous), weak)
            self.seen = True
            self.calls += 1
        return weak

    @contextmanager
    def _perturbed(self, state: State) -> Iterator[None]:
        mask = state.context.mask
        blocks = attention_blocks(self.denoiser)
        with ExitStack() as hooks:
            for i in self.layers:
                for handle in self._hooks(blocks[i], mask, state, i):
                    hooks.callback(handle.remove)
            yield

    def _hooks(self, block: nn.Module, mask: Tensor, state: State, layer: int) -> list[Any]:
        qkv, out = block.qkv, block.out
        assert isinstance(qkv, nn.Linear) and isinstance(out, nn.Linear)
        if self.kind == "identity":
            kept: list[Tensor] = []

            def keep(_: nn.Module, __: object, output: Tensor) -> None:
                kept[:] = [output.chunk(3, -1)[2]]

            def alone(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor]:
                others = torch.zeros_like(arguments[0][..., kept[0].shape[-1] :])
                return (torch.cat((kept[0], others), -1),)

            return [qkv.register_forward_hook(keep), out.register_forward_pre_hook(alone)]
        if self.kind == "blur":
            weights = _blur(mask, self.sigma)

            def blur(_: nn.Module, __: object, output: Tensor) -> Tensor:
                _check_tokens(output, mask)
                q, k, v = output.chunk(3, -1)
                return torch.cat((weights.to(q.dtype) @ q, k, v), -1)

            return [qkv.register_forward_hook(blur)]
        u = draws_of(state, self.seed).uniform(
            mask.shape[1:], "shuffle", layer, torch.float64, mask.device
        )
        there = _permutation(u, mask)
        back = there.argsort(1)

        def mix(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            _check_tokens(arguments[0], mask)
            return (_taken(arguments[0], there), *arguments[1:])

        def restore(_: nn.Module, __: object, output: Any) -> Any:
            if isinstance(output, Tensor):
                return _taken(output, back)
            return (_taken(output[0], back), *output[1:])

        return [block.register_forward_pre_hook(mix), block.register_forward_hook(restore)]


def _blur(mask: Tensor, sigma: float) -> Tensor:
    """``[B, N, N]``: each token's weights on the real ones, which sum to one."""
    i = torch.arange(mask.shape[1], device=mask.device)
    distance = (i[:, None] - i).to(torch.float64)
    weights = torch.exp(-((distance / sigma) ** 2) / 2) * mask[:, None]
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


def _permutation(u: Tensor, mask: Tensor) -> Tensor:
    """Where each token comes from, ``[B, N]``: a random order of the real ones."""
    places = (~mask).long().argsort(dim=1, stable=True)
    order = u.masked_fill(~mask, math.inf).argsort(dim=1, stable=True)
    return torch.zeros_like(order).scatter(1, places, order)


def _taken(h: Tensor, rows: Tensor) -> Tensor:
    return h.gather(1, rows[..., None].expand_as(h))


def _check_tokens(h: Tensor, mask: Tensor) -> None:
    if h.ndim != 3 or h.shape[:2] != mask.shape:
        raise InputError(
            f"the tokens of this block, {list(h.shape)}, are not the elements {list(mask.shape)} "
            "of the context; only kind='identity' can perturb it"
        )


def _check_different(kind: str, plain: Prediction, weak: Prediction) -> None:
    for name, x in plain.detach().clean.items():
        # Rounding alone: permuted sums are not bit for bit the same.
        size = 1000 * torch.finfo(x.dtype).eps * x.abs().max().clamp(min=1)
        if bool((x - weak[name].detach()).abs().max() > size):
            return
    raise InputError(
        f"perturbation {kind!r} leaves this network's answer as it is, so guidance by it does "
        "nothing: a network that treats its tokens as a set commutes with permutations. Use kind "
        "'identity' or 'blur', other layers, or another weak model"
    )
