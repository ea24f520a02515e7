"""What every network owes, with all parameters random so that no property holds by being zero."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sciflow.denoisers import Network
from sciflow.networks.transformer import AugmentedTransformer
from sciflow.state import Context

from .cases import CLASSES, EQUIVARIANT, NETWORKS, PAIRS, SIZES, build, difference, make

every_network = pytest.mark.parametrize("kind", NETWORKS, ids=lambda n: n.__name__)
equivariant = pytest.mark.parametrize("kind", EQUIVARIANT, ids=lambda n: n.__name__)
every_level = pytest.mark.parametrize("levels", ["sample", "element"])


def rotation(seed: int, reflect: bool) -> Tensor:
    """A random orthogonal matrix with determinant −1 if ``reflect``, else 1."""
    g = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=g, dtype=torch.float64))
    return q * q.det().sign() * (-1 if reflect else 1)


@every_network
@every_level
@pytest.mark.parametrize("previous", [True, False])
def test_outputs_have_the_promised_shape_and_pairs_are_symmetric(
    kind: type[Network], levels: str, previous: bool
) -> None:
    case = make(levels=levels, previous=previous)
    out = case.run(build(kind))
    assert out["coords"].shape == case.inputs["coords"].shape
    assert not out["coords"][~case.context.mask].any()
    for name, k in CLASSES.items():
        assert out[name].shape == (*case.inputs[name].shape, k)
    assert all(bool(x.isfinite().all()) for x in out.values())
    torch.testing.assert_close(out["bonds"], out["bonds"].transpose(1, 2), rtol=1e-10, atol=1e-10)


@every_network
def test_everything_that_enters_matters(kind: type[Network]) -> None:
    """No invariance below is owed to an input that is ignored."""
    network, case = build(kind), make()
    out = case.run(network)
    changed = {
        "coords": case.inputs["coords"] * 1.3,
        "types": (case.inputs["types"] + 1) % 5,
        "charges": (case.inputs["charges"] + 1) % 3,
        "bonds": torch.where(case.inputs["bonds"] > 0, case.inputs["bonds"] % 4 + 1, 0),
    }
    for name, value in changed.items():
        moved = copy.copy(case)
        moved.inputs = {**case.inputs, name: value}
        assert difference(out, moved.run(network), case.context.mask) > 1e-3, name
    for name in case.inputs:
        later = case.map(lambda k, x, n=name: x + 0.5 if k == f"level/{n}" else x)
        assert difference(out, later.run(network), case.context.mask) > 1e-3, f"level of {name}"
        assert case.previous is not None
        back = copy.copy(case)
        back.previous = {k: v.roll(1, -1) if k == name else v for k, v in case.previous.items()}
        back.previous["coords"] = case.previous["coords"] * (1.3 if name == "coords" else 1.0)
        assert difference(out, back.run(network), case.context.mask) > 1e-3, f"previous {name}"
    for name in case.context.conditions:
        other = copy.copy(case)
        conditions = case.context.conditions
        other.context = case.context.replace(conditions={**conditions, name: conditions[name] + 1})
        assert difference(out, other.run(network), case.context.mask) > 1e-3, name


@every_network
@every_level
def test_permuting_points_permutes_outputs(kind: type[Network], levels: str) -> None:
    network, case = build(kind), make([6, 6, 6], levels=levels)
    order = torch.tensor([3, 0, 5, 1, 4, 2])

    def shuffle(name: str, x: Tensor) -> Tensor:
        if name.startswith("level/") and x.ndim == 1:
            return x
        x = x[:, order]
        return x[:, :, order] if name.removeprefix("level/") in PAIRS else x

    out, moved = case.run(network), case.map(shuffle).run(network)
    expected = {name: shuffle(name, x) for name, x in out.items()}
    assert difference(expected, moved, case.context.mask) < 1e-10


@every_network
@every_level
def test_padding_and_companions_change_nothing(kind: type[Network], levels: str) -> None:
    network, case = build(kind), make(levels=levels)
    out = case.run(network)
    padded = make(levels=levels, pad=5)
    assert padded.context.mask.shape[1] == max(SIZES) + 5
    assert difference(out, padded.run(network), case.context.mask) < 1e-10
    for i, n in enumerate(SIZES):
        alone = case.row(i).run(network)
        together = {k: x[i : i + 1, :n, :n] if k in PAIRS else x[i : i + 1, :n]
                    for k, x in out.items()}  # fmt: skip
        assert difference(alone, together, torch.ones(1, n, dtype=torch.bool)) < 1e-10


@equivariant
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
@pytest.mark.parametrize("reflect", [False, True])
def test_rotations_reflections_and_translations_commute(
    kind: type[Network], dtype: torch.dtype, tolerance: float, reflect: bool
) -> None:
    network, case = build(kind).to(dtype), make(dtype=dtype, levels="element")
    q = rotation(5, reflect).to(dtype)
    shift = torch.tensor([2.0, -1.0, 0.5], dtype=dtype)
    out = case.run(network)
    expected = {**out, "coords": out["coords"] @ q.T}
    moved = case.move(lambda x: x @ q.T + shift).run(network)
    assert out["coords"].dtype == dtype
    assert float(out["coords"].abs().max()) > 1e-2
    assert difference(expected, moved, case.context.mask) < tolerance


@every_network
def test_translations_change_nothing(kind: type[Network]) -> None:
    network, case = build(kind), make()
    moved = case.move(lambda x: x + torch.tensor([5.0, -3.0, 1.0]))
    assert difference(case.run(network), moved.run(network), case.context.mask) < 1e-9


@every_network
@pytest.mark.parametrize("sizes", [[], [0], [0, 0], [1], [0, 3, 1]], ids=str)
@every_level
def test_empty_batches_empty_samples_and_single_points(
    kind: type[Network], sizes: list[int], levels: str
) -> None:
    case = make(sizes, levels=levels)
    out = case.run(build(kind))
    for name, x in case.inputs.items():
        assert out[name].shape[: x.ndim] == x.shape
        assert bool(out[name].isfinite().all())


@every_network
@every_level
def test_coincident_points_have_finite_gradients(kind: type[Network], levels: str) -> None:
    network, case = build(kind), make(levels=levels)
    assert case.previous is not None
    x = case.inputs["coords"].clone()
    x[0, 1], x[0, 2] = x[0, 0], x[0, 0] + 1e-9
    case.inputs["coords"] = x.requires_grad_(True)
    case.previous["coords"] = x * 1.0
    out = network(case.inputs, case.levels, case.context, case.previous)
    sum(y.square().sum() for y in out.values()).backward()  # type: ignore[union-attr]
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
    assert float(x.grad.abs().max()) < 1e8
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert bool(p.grad.isfinite().all()), name


@every_network
def test_every_parameter_learns(kind: type[Network]) -> None:
    network, case = build(kind).train(), make()
    out = network(case.inputs, case.levels, case.context, case.previous)
    g = torch.Generator().manual_seed(3)
    weighted = [(x * torch.randn(x.shape, generator=g, dtype=x.dtype)).sum() for x in out.values()]
    torch.stack(weighted).sum().backward()
    idle = [name for name, p in network.named_parameters()
            if p.grad is None or not p.grad.any()]  # fmt: skip
    # A constant added to all logits of a softmax row cannot matter.
    assert [name for name in idle if not name.endswith("bias.bias")] == []


@every_network
def test_one_level_a_sample_equals_that_level_at_every_element(kind: type[Network]) -> None:
    network, case = build(kind), make([5, 1, 3], pad=2)
    n = case.context.mask.shape[1]
    out = case.run(network)
    shapes = {"coords": (n,), "types": (n,), "charges": (n,), "bonds": (n, n)}
    for names in (["coords"], ["bonds"], list(shapes)):
        each = copy.copy(case)
        each.levels = {
            k: v.reshape(-1, *(1 for _ in shapes[k])).expand(-1, *shapes[k]) if k in names else v
            for k, v in case.levels.items()
        }
        assert difference(out, each.run(network), case.context.mask) < 1e-10


@every_network
def test_given_elements_are_told_apart_by_their_level(kind: type[Network]) -> None:
    network, case = build(kind), make([5, 5])
    each = copy.copy(case)
    level = case.levels["coords"][:, None].repeat(1, 5)
    level[:, 2] = -8.0
    each.levels = {**case.levels, "coords": level}
    assert difference(case.run(network), each.run(network), case.context.mask) > 1e-3


@every_network
def test_nan_and_absent_conditions_are_not_asked_for(kind: type[Network]) -> None:
    network, case = build(kind), make()
    nothing, absent = copy.copy(case), copy.copy(case)
    nothing.context = case.context.unconditional()
    absent.context = Context(case.context.mask)
    out = nothing.run(network)
    assert all(bool(x.isfinite().all()) for x in out.values())
    assert difference(out, absent.run(network), case.context.mask) == 0
    assert difference(out, case.run(network), case.context.mask) > 1e-3


@every_network
def test_without_self_conditioning_a_previous_estimate_is_ignored(kind: type[Network]) -> None:
    network = build(kind, self_conditioning=False)
    with_, without = make().run(network), make(previous=False).run(network)
    assert difference(with_, without, make().context.mask) == 0


@every_network
def test_points_alone_need_no_pairs(kind: type[Network]) -> None:
    network, case = build(kind, pairs={}), make()
    for part in (case.inputs, case.levels, case.previous):
        assert part is not None
        del part["bonds"]
    out = case.run(network)
    assert set(out) == {"coords", "types", "charges"}
    expected = case.row(1).run(network)
    n = SIZES[1]
    together = {k: x[1:2, :n] for k, x in out.items()}
    assert difference(expected, together, torch.ones(1, n, dtype=torch.bool)) < 1e-10


@every_network
def test_points_alone_need_no_tokens(kind: type[Network]) -> None:
    network, case = build(kind, pairs={}, tokens={}), make()
    out = network({"coords": case.inputs["coords"]}, {"coords": case.levels["coords"]},
                  case.context, None)  # fmt: skip
    assert set(out) == {"coords"}
    assert bool(out["coords"].isfinite().all())


@every_network
def test_a_copy_and_saved_weights_give_the_same_outputs(
    kind: type[Network], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    network, case = build(kind), make()
    out = case.run(network)
    assert difference(out, case.run(copy.deepcopy(network)), case.context.mask) == 0
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    other = build(kind, seed=1)
    assert difference(out, case.run(other), case.context.mask) > 1e-3
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert difference(out, case.run(other), case.context.mask) == 0


@every_network
def test_bfloat16_autocast_changes_little_after_use_in_inference_mode(kind: type[Network]) -> None:
    network, case = build(kind).float().train(), make(dtype=torch.float32)
    with torch.inference_mode():
        case.run(network)
    exact = network(case.inputs, case.levels, case.context, case.previous)
    with torch.autocast("cpu", torch.bfloat16):
        out = network(case.inputs, case.levels, case.context, case.previous)
    assert difference(exact, out, case.context.mask) < 0.1
    sum(y.float().square().sum() for y in out.values()).backward()  # type: ignore[union-attr]
    assert all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None)


def test_the_transformer_is_rotated_in_training_and_deterministic_in_evaluation() -> None:
    from sciflow.networks.rotations import rotation_from_points

    network, case = build(AugmentedTransformer), make([6, 5, 7])
    mask = case.context.mask
    n = mask.sum(1)[:, None, None]
    case = case.move(lambda x: x - (x * mask[..., None]).sum(1, keepdim=True) / n)
    still = case.run(network)
    assert difference(still, case.run(network), mask) == 0

    network.train()
    turned = case.run(network)
    assert difference(turned, case.run(network), mask) == 0, "a function of the input alone"
    r = rotation_from_points(case.inputs["coords"], mask)
    network.eval()
    by_hand = case.move(lambda x: x @ r.mT).run(network)
    by_hand["coords"] = by_hand["coords"] @ r
    assert difference(turned, by_hand, mask) < 1e-10
    assert difference(still, turned, mask) > 1e-3, "random weights are not equivariant"
