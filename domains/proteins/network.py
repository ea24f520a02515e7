r"""The network of backbones: attention among residues that is biased and fed by their geometry.

    A_ij = softmax_j( q_i·k_j/√c + b(e_ij) ),
    h_i += W [ Σ_j A_ij v_j ,  Σ_j A_ij e_ij ],        h_i += MLP(h_i)

The pair features e_ij are made once, from what residue i sees of residue j in its own frame: the
distance of their CA atoms, the direction R_iᵀ(t_j − t_i), the turn R_iᵀR_j, and how far apart they
are along the chain. All of these are invariant, as are the points of invariant point attention
(Jumper et al. 2021), whose sum over j the second term takes; what leaves the network as a vector
is written in the frame of its residue. So it commutes with rotations and translations, and not
with reflections: a turn tells left from right.

Which frames there are depends on the fields. ``rotations`` of residues are frames; ``positions``
alone have those of the CA trace (Frenet, as in Genie, Lin & AlQuraishi 2023); torsions alone have
none while noisy, but the previous estimate of a self-conditioned network is a chain that can be
rebuilt (:mod:`domains.proteins.rebuild`). Geometry of the noisy fields and of that estimate enters
side by side: the network sees in space what its own angles add up to.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from domains.proteins.chain import ALPHABET
from domains.proteins.frames import Frames, axes, frames_from_trace
from domains.proteins.geometry_inputs import NeighbourGeometry, PairGeometry, ResidueInputs
from domains.proteins.letters import FIELD
from domains.proteins.rebuild import bends_in_radians, rebuild
from sciflow.denoisers import Network
from sciflow.networks.embeddings import LevelEmbedding
from sciflow.networks.inputs import Modulation, SampleEmbedding
from sciflow.networks.pairs import length
from sciflow.paths.base import LEVEL_LIMIT
from sciflow.state import Context

__all__ = ["BackboneNetwork"]

_FARTHEST_STEP = 32
"""Residues farther apart along the chain than this count as this far."""


class BackboneNetwork(Network):
    """Denoises any of positions, rotations, torsions, bends and kinds of residues, jointly.

    Args:
        fields: of "positions" ``[B, N, 3]``, "rotations" ``[B, N, 3, 3]``, "torsions" and "bends"
            ``[B, N, 3]``, and "residues" ``[B, N]``, of which it gives logits.
        conditions: ``{property: (mean, std)}``.
        scale: ångström per unit of positions.
        dim: width of residue features; ``pair_dim`` of pair features, 0 for a bias alone.
        depth: number of blocks; ``heads`` of attention.
        widening: of the two-layer maps.
        radial: Gaussians on the distance.
        self_conditioning: reserve inputs for a previous estimate.
        reach: residues along the chain whose geometry each residue is told directly; 0 is none.
    """

    def __init__(
        self,
        fields: Sequence[str],
        conditions: Mapping[str, Sequence[float]],
        scale: float,
        dim: int = 128,
        pair_dim: int = 16,
        depth: int = 4,
        heads: int = 4,
        widening: int = 2,
        radial: int = 16,
        self_conditioning: bool = True,
        reach: int = 0,
    ):
        super().__init__()
        self.fields, self.scale = tuple(fields), scale
        self.depth, self.heads, self.self_conditioning = depth, heads, self_conditioning
        self.sample = SampleEmbedding(self.fields, conditions, dim)
        self.level = OwnLevel(len(self.fields), dim)
        self.residue_in = ResidueInputs(self.fields, dim)
        spatial = "positions" in self.fields
        # Without pair features geometry biases attention and nothing else.
        width = pair_dim or depth * heads
        self.steps = nn.Embedding(2 * _FARTHEST_STEP + 1, width)
        self.pair_in = PairGeometry(width, dim, radial) if spatial else None
        self.near_in = NeighbourGeometry(dim, reach) if spatial and reach else None
        if self_conditioning:
            self.residue_back = ResidueInputs(self.fields, dim)
            self.pair_back = PairGeometry(width, dim, radial)
            self.near_back = NeighbourGeometry(dim, reach) if reach else None
        if pair_dim:
            self.pair_mlp = nn.Sequential(
                nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
            )
            self.bias = nn.Linear(width, depth * heads)
        self.pair_dim = pair_dim
        self.blocks = nn.ModuleList([Block(dim, pair_dim, heads, widening) for _ in range(depth)])
        self.norm = nn.LayerNorm(dim)
        sizes = {FIELD: len(ALPHABET)}
        self.out = nn.ModuleDict({f: nn.Linear(dim, sizes.get(f, 3)) for f in self.fields})
        for linear in self.out.values():
            nn.init.zeros_(linear.weight)  # type: ignore[arg-type]
            nn.init.zeros_(linear.bias)  # type: ignore[arg-type]
        self.pull = Pull(dim, pair_dim) if spatial else None

    def forward(
        self,
        inputs: dict[str, Tensor],
        levels: dict[str, Tensor],
        context: Context,
        previous: dict[str, Tensor] | None,
    ) -> dict[str, Tensor]:
        """See :class:`~sciflow.denoisers.Network`."""
        mask = context.mask
        c = self.sample({f: _latest(x, mask) for f, x in levels.items()}, context)
        h = c + self.level([levels[f] for f in self.fields]) + self.residue_in(inputs)
        h = h.expand(-1, mask.shape[1], -1)
        index = self._index(context)
        e = self._along(index)
        frames = self._frames(inputs, mask)
        if self.pair_in is not None and frames is not None:
            h = h + self.pair_in.residues(frames, mask)
            e = e + self.pair_in(frames)
            if self.near_in is not None:
                h = h + self.near_in(frames, mask, index)
        if previous is not None and self.self_conditioning:
            back = self._frames(previous, mask) or self._rebuilt(previous)
            h = h + self.residue_back(previous) + self.pair_back.residues(back, mask)
            e = e + self.pair_back(back)
            if self.near_back is not None:
                h = h + self.near_back(back, mask, index)
        bias = e
        if self.pair_dim:
            e = self.pair_mlp(e)
            bias = self.bias(e)
        bias = bias.unflatten(-1, (self.depth, self.heads)).permute(3, 0, 4, 1, 2).contiguous()
        floor = torch.zeros_like(mask, dtype=h.dtype)
        # Finite: a sample without residues must not turn into NaN.
        floor = floor.masked_fill(~mask, torch.finfo(h.dtype).min / 2)[:, None, None]
        for block, block_bias in zip(self.blocks, bias.unbind(0), strict=True):
            h = block(h, c, e, block_bias, floor)
        h = self.norm(h)
        outputs = {f: linear(h) for f, linear in self.out.items()}
        if frames is not None and self.pull is not None:
            rotation, place = frames
            moved = (rotation * outputs["positions"][..., None, :]).sum(-1)
            outputs["positions"] = moved + self.pull(h, e, place, mask)
        return outputs

    @staticmethod
    def _index(context: Context) -> Tensor:
        """Places of residues along the chain, ``[1 or B, N]``."""
        index = context.extras.get("index")
        if index is None:
            # Real residues come first, so that one table serves all samples.
            return torch.arange(context.mask.shape[1], device=context.mask.device)[None]
        return index

    def _along(self, index: Tensor) -> Tensor:
        """Pair features of how far apart residues are along the chain, ``[1 or B, N, N, dim]``."""
        step = (index[:, None] - index[:, :, None]).clamp(-_FARTHEST_STEP, _FARTHEST_STEP)
        return self.steps(step.long() + _FARTHEST_STEP)

    def _frames(self, fields: Mapping[str, Tensor], mask: Tensor) -> Frames | None:
        """Frames of the fields in ångström, where they lie in space."""
        if "positions" not in self.fields:
            return None
        place = fields["positions"] * self.scale
        if "rotations" in self.fields:
            return fields["rotations"], place
        return frames_from_trace(place, mask), place

    def _rebuilt(self, fields: Mapping[str, Tensor]) -> Frames:
        # An early estimate of a bend may be anything; a chain of it must be finite.
        bends = bends_in_radians(fields["bends"].clamp(-4, 4))
        n, ca, c, _ = rebuild(fields["torsions"], bends).unbind(-2)
        return axes(c - ca, n - ca), ca


def _latest(level: Tensor, mask: Tensor) -> Tensor:
    """The level of the noisiest residue of each sample, ``[B]``."""
    if level.ndim == 1:
        return level
    return level.masked_fill(~mask, -LEVEL_LIMIT).amax(1)


class OwnLevel(nn.Module):
    """Tells each residue its own noise level, so that it knows who is given.

    Blocks are modulated by the level of the sample, a vector each; a vector a residue would double
    their cost.
    """

    def __init__(self, fields: int, dim: int, waves: int = 16):
        super().__init__()
        self.waves = LevelEmbedding(waves)
        self.linear = nn.Linear(waves * fields, dim)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Of levels ``[B]`` or ``[B, N]``: ``[B, 1 or N, dim]``."""
        width = max(x.shape[1] if x.ndim > 1 else 1 for x in levels)
        parts = [self.waves(x if x.ndim > 1 else x[:, None]) for x in levels]
        out: Tensor = self.linear(torch.cat([p.expand(-1, width, -1) for p in parts], -1))
        return out


class Block(nn.Module):
    """Attention that gathers values of residues and of pairs, and a two-layer map."""

    def __init__(self, dim: int, pair_dim: int, heads: int, widening: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim, elementwise_affine=False)
        self.modulation = Modulation(dim, 2)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.pairs = pair_dim > 0
        self.out = nn.Linear(dim + heads * pair_dim, dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, widening * dim), nn.SiLU(), nn.Linear(widening * dim, dim)
        )

    def forward(self, h: Tensor, c: Tensor, e: Tensor, bias: Tensor, floor: Tensor) -> Tensor:
        """``h [B, N, dim]``, ``c [B, 1 or N, dim]``, ``e [1 or B, N, N, pair_dim]``,
        ``bias [1 or B, heads, N, N]``, ``floor [B, 1, 1, N]``."""
        b, n, dim = h.shape
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(c)
        qkv = self.qkv(self.norm(h) * scale_a + shift_a)
        q, k, v = qkv.view(b, n, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        a = (q / math.sqrt(q.shape[-1]) @ k.mT + bias + floor).softmax(-1)
        values = (a @ v).transpose(1, 2).reshape(b, n, dim)
        if self.pairs:
            pairs = a.transpose(1, 2) @ e
            values = torch.cat((values, pairs.flatten(2)), -1)
        h = h + gate_a * self.out(values)
        return h + gate_m * self.mlp(self.norm(h) * scale_m + shift_m)


class Pull(nn.Module):
    """Displacements Σ_j w_ij (t_j − t_i)/(1 + |t_j − t_i|): a part of the output without frames."""

    def __init__(self, dim: int, pair_dim: int, width: int = 32):
        super().__init__()
        self.point = nn.Linear(dim, 2 * width)
        self.pair = nn.Linear(pair_dim, 1) if pair_dim else None
        self.width = width
        if self.pair is not None:
            nn.init.zeros_(self.pair.weight)
            nn.init.zeros_(self.pair.bias)
        nn.init.zeros_(self.point.weight)

    def forward(self, h: Tensor, e: Tensor, place: Tensor, mask: Tensor) -> Tensor:
        """``[B, N, 3]``."""
        q, k = self.point(h).chunk(2, -1)
        w = q @ k.mT / math.sqrt(self.width)
        w = (w if self.pair is None else w + self.pair(e)[..., 0]) * mask[:, None]
        apart = place[:, None] - place[:, :, None]
        apart = apart / (1 + length(apart))[..., None]
        return torch.einsum("bij,bijk->bik", w, apart) / math.sqrt(16.0)
