"""Finished chains are parted where they touch, by little, and only there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from domains.proteins.chain import Chain
from domains.proteins.clash_guidance import Unclashed
from domains.proteins.encoding import Encoding
from domains.proteins.evaluators import rows
from domains.proteins.ideal import helix_bundle
from sciflow.denoisers import Denoiser, Prediction
from sciflow.errors import InputError
from sciflow.paths import GaussianPath, GeodesicPath
from sciflow.samplers.hooks import Step
from sciflow.schedules import Rectified
from sciflow.spaces import Euclidean, Torus
from sciflow.state import State, Times

ENCODING = Encoding(("torsions", "bends"))


class Nothing(Denoiser):
    """Has the fields of a model of angles, and is never asked."""

    def __init__(self) -> None:
        super().__init__()
        self.paths = {"torsions": GeodesicPath(Torus(3), Rectified()),
                      "bends": GaussianPath(Euclidean(3), Rectified())}  # fmt: skip

    def forward(
        self, state: State, t: Times | float, previous: Prediction | None = None
    ) -> Prediction:
        raise AssertionError("no network call")


def ended(state: State, end: float = 0.0) -> Step:
    return Step(0, 0.1, end, state, Prediction(dict(state.fields)), state)


def states() -> tuple[State, Tensor]:
    """Three chains of different lengths, the second folded back upon itself; and which do touch."""
    chains = [helix_bundle(1), helix_bundle(2), helix_bundle(3)]
    lengths = [40, 44, 36]
    chains = [Chain(c.backbone[:n]) for c, n in zip(chains, lengths, strict=True)]
    state = ENCODING.encode(chains, [])
    torsions = state["torsions"].clone()
    # Helix, a hairpin of two residues, helix: the second runs through the first.
    torsions[1, :44, 0], torsions[1, :44, 1] = -1.05, -0.79
    torsions[1, 21, 0], torsions[1, 21, 1], torsions[1, 22, 0] = -1.39, -0.11, 2.01
    return state.replace(torsions=torsions), torch.tensor([False, True, False])


def nearest(state: State) -> Tensor:
    """Least distance of CA atoms more than two residues apart, ``[B]``."""
    ca = ENCODING.backbone(state, None)[:, :, 1]
    n, mask = ca.shape[1], state.context.mask
    i = torch.arange(n)
    apart = (i[:, None] + 2 < i) & mask[:, :, None] & mask[:, None]
    return torch.cdist(ca, ca).masked_fill(~apart, torch.inf).amin((1, 2))


def test_chains_that_touch_are_parted_and_others_stay() -> None:
    state, touch = states()
    assert ((nearest(state) < 3.6) == touch).all()
    done = Unclashed(Nothing()).after_step(ended(state))
    assert float(nearest(done).min()) > 3.6
    free = nearest(state) > 4.2
    assert free.any() and (done["torsions"][free] == state["torsions"][free]).all()
    assert (done["bends"] == state["bends"]).all()
    # By little: half a radian of one bond at most, and ω by nothing.
    moved = (done["torsions"] - state["torsions"]).abs()
    assert 0 < float(moved[1].max()) < 0.6 and float(moved[..., 2].max()) < 1e-6
    for before, after in zip(ENCODING.decode(state), ENCODING.decode(done), strict=True):
        assert rows([after])[0]["clashes"] == 0
        assert len(after) == len(before)


def test_a_chain_does_not_feel_its_companions_or_padding() -> None:
    state, _ = states()
    together = Unclashed(Nothing()).after_step(ended(state))
    alone = state.index(torch.tensor([1]))
    alone = Unclashed(Nothing()).after_step(ended(alone))
    n = alone["torsions"].shape[1]
    assert torch.allclose(alone["torsions"][0], together["torsions"][1, :n], atol=1e-6)


def test_given_residues_do_not_turn() -> None:
    state, _ = states()
    given = torch.zeros_like(state.context.mask)
    given[:, :10] = True
    context = state.context.replace(given={"torsions": given, "bends": given})
    done = Unclashed(Nothing()).after_step(ended(State(state.fields, context)))
    assert (done["torsions"][:, :10] == state["torsions"][:, :10]).all()
    assert float(nearest(done)[1]) > float(nearest(state)[1])


def test_only_the_finished_chain_is_touched() -> None:
    state, _ = states()
    assert Unclashed(Nothing()).after_step(ended(state, end=0.05)) is state


@pytest.mark.parametrize("wrong", [{"variance": 0.0}, {"clash": -1.0}, {"iterations": 0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="must be above 0"):
        Unclashed(Nothing(), **wrong)  # type: ignore[arg-type]


def test_a_model_of_positions_is_told_what_to_use() -> None:
    class Positions(Nothing):
        def __init__(self) -> None:
            super().__init__()
            self.paths = {"positions": GaussianPath(Euclidean(3), Rectified())}

    with pytest.raises(InputError, match="use the guide shape"):
        Unclashed(Positions())
