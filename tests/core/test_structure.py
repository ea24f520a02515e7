"""Rules of the design that hold for every file: who imports whom, what is never unpickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCIENCE = {"domains", "rdkit", "Bio", "mdtraj", "tblite", "posebusters"}
HEAVY = {"torch", "lightning", "rdkit", "pandas", "matplotlib", "scipy", "numpy", "tqdm", "joblib",
         "torch_geometric", "e3nn", "safetensors", "tblite"}  # fmt: skip
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
# Names the exception that `torch.load(weights_only=True)` raises; loads nothing.
MAY_NAME_PICKLE = {"sciflow/training/checkpoints.py"}
# The order of training records, from (seed, epoch), and which of them a model keeps.
MAY_DRAW = {"sciflow/training/data.py", "sciflow/reference.py"}
TORCH_DRAWS = {
    "rand",
    "randn",
    "randint",
    "randperm",
    "normal",
    "bernoulli",
    "multinomial",
    "poisson",
    "rand_like",
    "randn_like",
    "randint_like",
    "Generator",
}
FILLS = {"normal_", "uniform_", "bernoulli_", "exponential_", "random_", "multinomial"}


def sources(*folders: str) -> list[Path]:
    return sorted(p for folder in folders for p in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Every module that is imported anywhere in a file, functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield node.module or ""


def test_the_walk_sees_imports_inside_functions() -> None:
    tree = ast.parse("def f():\n    import rdkit.Chem\n    from domains.molecules import io\n")
    assert list(imported(tree)) == ["rdkit.Chem", "domains.molecules"]


@pytest.mark.parametrize("path", sources("sciflow"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_imports_no_science(path: Path) -> None:
    roots = {name.partition(".")[0] for name in imported(ast.parse(path.read_text()))}
    assert not roots & SCIENCE


@pytest.mark.parametrize("path", sources("domains"), ids=lambda p: str(p.relative_to(ROOT)))
def test_no_science_imports_another(path: Path) -> None:
    own = path.relative_to(ROOT / "domains").parts[0]
    others = {
        name.split(".")[1]
        for name in imported(ast.parse(path.read_text()))
        if name.startswith("domains.")
    }
    assert others <= {own}


@pytest.mark.parametrize("path", sources("sciflow", "domains"),
                         ids=lambda p: str(p.relative_to(ROOT)))  # fmt: skip
def test_nothing_is_ever_unpickled(path: Path) -> None:
    tree = ast.parse(path.read_text())
    if str(path.relative_to(ROOT)) not in MAY_NAME_PICKLE:
        assert not {name.partition(".")[0] for name in imported(tree)} & UNPICKLERS
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load")
        if called == "torch.load":
            assert given.get("weights_only") == "True", f"{path}:{node.lineno}"
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle", "False") == "False", f"{path}:{node.lineno}"
        assert given.get("allow_pickle") != "True" and given.get("weights_only") != "False"


def draws_of_its_own(tree: ast.AST) -> set[str]:
    """Uses of the sequential generators of torch, numpy and the standard library."""
    found = {name for name in imported(tree) if name.partition(".")[0] == "random"}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "numpy.random"):
            names = {alias.name for alias in node.names}
            found |= names & (TORCH_DRAWS | {"random", "default_rng"})
        if not isinstance(node, ast.Attribute):
            continue
        owner = ast.unparse(node.value)
        if (
            owner in ("np.random", "numpy.random", "torch.distributions")
            or (owner == "torch" and node.attr in TORCH_DRAWS)
            or (owner not in ("init", "nn.init", "torch.nn.init") and node.attr in FILLS)
        ):
            found.add(ast.unparse(node))  # fmt: skip
    return found


def test_the_walk_sees_draws() -> None:
    code = ("import random\nfrom torch import randn\nnp.random.default_rng(0)\n"
            "x = torch.rand(3)\nx.normal_()\nnn.init.normal_(x)\ndraws.normal((3,))\n")  # fmt: skip
    assert draws_of_its_own(ast.parse(code)) == {
        "random", "randn", "np.random.default_rng", "torch.rand", "x.normal_"
    }  # fmt: skip


@pytest.mark.parametrize("path", sources("sciflow"), ids=lambda p: str(p.relative_to(ROOT)))
def test_only_counted_draws_are_random(path: Path) -> None:
    """Sample i depends on (seed, i) alone: every number comes from ``sciflow.random.Draws``.

    Except a network's first weights, and what ``sciflow.testing`` makes up.
    """
    name = str(path.relative_to(ROOT))
    if name not in MAY_DRAW and not name.startswith("sciflow/testing/"):
        assert not draws_of_its_own(ast.parse(path.read_text()))


@pytest.mark.parametrize(
    "command", ["--help", "--version", "sample --help", "train --help", "data build --help", "list"]
)
def test_help_and_list_import_nothing_heavy(command: str) -> None:
    code = (
        "import sys\nfrom sciflow.cli import cli\n"
        f"sys.argv = ['sciflow', *{command.split()!r}]\n"
        "try:\n    cli(prog_name='sciflow')\nexcept SystemExit as stop:\n    assert not stop.code\n"
        f"print('heavy:', *sorted({HEAVY!r} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    heavy = run.stdout.splitlines()[-1].removeprefix("heavy:").split()
    # `list` looks at domains, whose light modules may need numpy; never the rest.
    assert set(heavy) <= ({"numpy"} if command == "list" else set())


def test_sampling_does_not_import_lightning(tiny_model_folder: Path) -> None:
    code = (
        f"import sys, sciflow\nsciflow.load({str(tiny_model_folder)!r})\n"
        "print(*sorted({'lightning', 'torch_geometric', 'matplotlib'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == []


def test_help_takes_less_than_a_third_of_a_second() -> None:
    """CPU time, which a loaded machine does not stretch; the best of three."""
    code = (
        "import resource, subprocess, sys\n"
        "def spent():\n"
        "    used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "    return used.ru_utime + used.ru_stime\n"
        "best = 9.0\n"
        "for _ in range(3):\n"
        "    begin = spent()\n"
        "    subprocess.run([sys.executable, '-m', 'sciflow', '--help'], check=True,\n"
        "                   stdout=subprocess.DEVNULL)\n"
        "    best = min(best, spent() - begin)\n"
        "print(best)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 0.3
