"""Pictures: well-formed, of the right things, and none of them falls over garbage."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from xml.etree import ElementTree

import numpy as np
import pytest

from domains.proteins.chain import Chain
from domains.proteins.datasets import backbones
from domains.proteins.evaluators.ramachandran import RamachandranGrids
from domains.proteins.evaluators.shape import contacts
from domains.proteins.pictures import _spline, contact_map_svg, ramachandran_svg, svg, viewer_html
from sciflow.data import shared_data

needs_data = pytest.mark.skipif(
    shared_data() is None, reason="the shared data are not on this machine"
)


def random_chain(n: int, **more) -> Chain:
    x = np.random.default_rng(0).normal(size=(n, 4, 3)) * 9
    return Chain(x, breaks=np.zeros(max(n - 1, 0), bool), **more)


def tags(text: str, name: str) -> list[ElementTree.Element]:
    return list(ElementTree.fromstring(text).iter(f"{{http://www.w3.org/2000/svg}}{name}"))


def test_the_curve_goes_through_its_points():
    x = np.random.default_rng(1).normal(size=(7, 2))
    curve = _spline(x, 4)
    assert len(curve) == 25 and curve[::4] == pytest.approx(x)
    line = np.arange(6.0)[:, None] * [1.0, 2.0]
    assert np.diff(_spline(line, 5), axis=0) == pytest.approx(np.full((25, 2), [0.2, 0.4]))


@needs_data
def test_the_trace_is_drawn_once_in_the_colours_of_its_states():
    table = backbones().select()
    row = int(np.flatnonzero((table.helix > 0.3) & (table.strand > 0.2))[0])
    chain = table[row]
    pieces = tags(svg(chain), "polyline")
    assert len(pieces) == len(chain) - 1
    assert {p.get("stroke") for p in pieces} == {"#d0453c", "#2f6fd0", "#8a8f98"}
    points = [tuple(map(float, q.split(","))) for p in pieces for q in p.get("points").split()]
    assert (np.array(points) >= 0).all() and (np.array(points) <= [220, 150]).all()
    broken = chain.replace(backbone=chain.backbone, breaks=np.arange(len(chain) - 1) == 20)
    assert len(tags(svg(broken), "polyline")) == len(chain) - 2


def test_a_contact_map_has_every_contact_twice():
    chain = random_chain(50)
    squares = tags(contact_map_svg(chain), "path")[0].get("d")
    assert squares.count("M") == 2 * len(contacts(chain)) > 0


@needs_data
def test_a_ramachandran_plot_has_a_dot_a_residue():
    chains = list(backbones().select().subset([0, 1]))
    paths = tags(ramachandran_svg(chains, RamachandranGrids.load()), "path")
    assert len(paths) == 3  # allowed, favoured, residues
    assert paths[-1].get("d").count("M") == sum(len(c) - 2 for c in chains)
    assert tags(ramachandran_svg(chains, most=50), "path")[0].get("d").count("M") == 50
    # φ = -60°, ψ = -45° lies left of the middle and below it.
    centre = 150.0
    x, y = map(float, re.match(r"M([\d.]+) ([\d.]+)", paths[1].get("d")).groups())
    assert 34 <= x <= 266 and 34 <= y <= 266 and centre


GARBAGE = {
    "nothing": Chain(np.zeros((0, 4, 3))),
    "one residue": random_chain(1),
    "all NaN": random_chain(5).replace(backbone=np.full((5, 4, 3), np.nan)),
    "some NaN": random_chain(5).replace(
        backbone=np.where(np.arange(5)[:, None, None] == 2, np.nan, random_chain(5).backbone)
    ),
    "infinite": random_chain(3).replace(backbone=np.full((3, 4, 3), np.inf)),
    "in one point": Chain(np.zeros((6, 4, 3))),
    "far away": Chain(np.full((3, 4, 3), 1e30)),
    "a name that ends the script": random_chain(4, name="</script><b>"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_drawn_or_named(name):
    chain = GARBAGE[name]
    for text in (svg(chain), contact_map_svg(chain), ramachandran_svg([chain])):
        ElementTree.fromstring(text)
        assert "nan" not in text.lower() and "inf" not in text.lower()
    page = viewer_html([chain])
    assert page.count("</script>") in (0, 2) and "<b>" not in page


def test_the_viewer_holds_the_chains(tmp_path):
    chains = [
        GARBAGE["all NaN"],
        random_chain(12, name="a & b", confidence=np.arange(12.0), properties={"rg_ratio": 1.5}),
        random_chain(9, given=np.arange(9) < 3),
    ]
    page = viewer_html(chains)
    scenes = json.loads(re.search(r'json">(.*?)</script>', page, re.S)[1])
    assert [s["at"] for s in scenes] == [1, 2]
    assert [len(s["x"]) for s in scenes] == [12, 9]
    assert scenes[0]["note"].startswith("12 residues") and "rg ratio 1.5" in scenes[0]["note"]
    assert "a &amp; b · 12 aa" in page and 'value="confidence"' in page
    assert viewer_html([GARBAGE["all NaN"]]) == ""
    assert 'value="given"' not in viewer_html(chains[:2])


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_viewer_draws(tmp_path):
    """Run in a stub of the page: every piece of the curve is stroked, keys and buttons work."""
    page = viewer_html([random_chain(12), random_chain(5)])
    scene = re.search(r'json">(.*?)</script>', page, re.S)[1]
    script = re.search(r"<script>(.*)</script>", page, re.S)[1]
    stub = """
    let strokes = 0; const on = {};
    const ctx = new Proxy({}, {get: (t, k) => k === "stroke" ? () => strokes++ : () => {},
      set: () => true});
    const element = (name, more) => ({addEventListener: (k, f) => { on[name + k] = f; }, ...more});
    const canvas = element("canvas ", {getContext: () => ctx, clientWidth: 600, clientHeight: 400});
    const pick = element("pick "), paint = element("paint ", {value: "state"}), note = {};
    const step = element("step ", {dataset: {step: "1"}});
    const root = {querySelectorAll: () => [step], querySelector: q => q.startsWith("script")
      ? {textContent: SCENES} : q === "canvas" ? canvas : q.includes("chain") ? pick
      : q.includes("colour") ? paint : note};
    globalThis.document = {currentScript: {parentElement: root},
      addEventListener: (k, f) => { on[k] = f; }};
    globalThis.window = {devicePixelRatio: 1, addEventListener() {}};
    globalThis.ResizeObserver = class { observe() {} };
    """
    check = """
    const first = strokes, said = [note.textContent.split(",")[0]];
    strokes = 0; on["step click"](); const second = strokes; said.push(pick.value);
    strokes = 0; on["canvas keydown"]({key: "ArrowLeft", preventDefault() {}});
    const third = strokes; on["sciflow:show"]({detail: 0}); said.push(pick.value);
    for (const c of ["place", "confidence", "given"]) { paint.value = c; on["paint change"](); }
    console.log(JSON.stringify([first, second, third, ...said]));
    """
    path = tmp_path / "run.js"
    path.write_text(stub.replace("SCENES", json.dumps(scene)) + script + check)
    done = subprocess.run(["node", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # Three strokes for each of six pieces between neighbours.
    assert json.loads(done.stdout) == [3 * 6 * 11, 3 * 6 * 4, 3 * 6 * 4, "12 residues", "1", "0"]


def test_the_report_shows_torsions_and_contacts():
    from types import SimpleNamespace

    from domains.proteins.adapter import Proteins
    from sciflow.reports.page import _field_plots

    records = [random_chain(12, name="a & b"), *[random_chain(9)] * 7]
    plots = Proteins().plots(records)
    assert len(plots) == 6
    assert "8 chains" in plots[0][1] and "a & b" in plots[1][1]
    run = SimpleNamespace(domain=Proteins(), records=records)
    section = _field_plots(run)
    assert section.count("<figure>") == section.count("</svg>") == 6 and "a &amp; b" in section
    assert _field_plots(SimpleNamespace(domain=Proteins(), records=[])) == ""
