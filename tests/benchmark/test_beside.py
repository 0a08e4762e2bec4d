"""`auto` and the nearest adversarials beside a paper's attack, on the networks of a run."""

from __future__ import annotations

import numpy as np
import pytest

from advbench.reproduction import engine, studies
from advbench.reproduction.beside import beside, beside_table, median_distance
from advbench.reproduction.findings import Findings
from advbench.reproduction.study import Comparison, Study

_PAPER = {
    "dataset": "digits",
    "epochs": 2,
    "n_examples": 30,
    "architecture": ["gu2014/n100-100-10"],
    "defense": ["none", "weight-decay", "gaussian-blur(base='none', kernel_size=3)"],
    "attack": ["deepfool"],
    "matrix": ["white-box"],
    "norm": "l2",
    "batch": 30,
}


def test_a_table_says_what_auto_leaves_and_how_far_the_nearest_are(tmp_path, monkeypatch, cache):
    found = []

    def compare(findings: Findings) -> list[Comparison]:
        found.append(findings)

        def paper(_: str, label: str):
            return findings["paper"].one(seed=4, target=label) if label.startswith("none") else None

        return [beside_table(findings, ["strong"], paper)]

    strong = beside(_PAPER, epsilon=0.4, nearest="ddn(steps=30)", images=20)
    assert (strong["first_seeds"], strong["n_examples"], strong["epsilon"]) == (1, 20, [0.4])
    runs = {"paper": _PAPER, "strong": strong}
    study = Study("gu2014.tiny", "tiny", lambda _: runs, compare, lambda _: ("all",))
    monkeypatch.setattr(studies, "STUDIES", (study,))
    (outcome,) = engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(4, 5), jobs=1).outcomes
    assert not outcome.problem
    rows = dict(outcome.comparisons[0].rows)
    blur = "gaussian-blur(base='none', kernel_size=3)"  # attacked by those who do not know of it too, which is not shown
    assert {cell.record.matrix for cell in found[0]["strong"].all(target=blur)} == {"white-box", "oblivious"}
    assert [name.partition(": ")[2].split(" /")[0] for name in rows] == ["none", "weight-decay", blur]
    for name, (clean, radius, robust, near, paper) in rows.items():
        label = name.partition(": ")[2]
        cell = found[0]["strong"].one(seed=4, target=label, attack="auto", matrix="white-box")
        right = cell.examples.clean_correct > 0
        kept = right & (cell.examples.report_correct > 0)
        assert clean.ours.values == pytest.approx([100 * right.mean()])
        assert robust.ours.values == pytest.approx([100 * kept.mean()])
        assert radius.ours.values == (0.4,)
        ddn = found[0]["strong"].one(seed=4, target=label, attack="ddn", matrix="white-box").examples
        assert near.ours.values == pytest.approx([np.median(ddn.distance_l2[right])])
        assert (paper.ours is None) == (not label.startswith("none"))
        assert len(cell.examples) == 20


def test_an_image_that_was_not_broken_is_infinitely_far(tmp_path, monkeypatch, cache):
    found = []
    tiny = _PAPER | {"defense": ["none"], "attack": ["deepfool(steps=1)"]}
    study = Study("gu2014.tiny", "t", lambda _: {"tiny": tiny}, lambda f: found.append(f) or [], lambda _: ("all",))
    monkeypatch.setattr(studies, "STUDIES", (study,))
    engine.reproduce("gu2014.tiny", scale="smoke", out=tmp_path, seeds=(4,), jobs=1)
    cell = found[0]["tiny"].one(seed=4, attack="deepfool")
    right = cell.examples.clean_correct > 0
    lost = right & (cell.examples.report_correct > 0)
    far = np.where(lost, np.inf, cell.examples.distance_l2)[right]
    assert median_distance(cell) == np.median(far)
    few = cell.examples.index[right][:3]
    assert median_distance(cell, few) == np.median(far[:3])
    assert np.isnan(median_distance(cell, cell.examples.index[~right][:2]))
