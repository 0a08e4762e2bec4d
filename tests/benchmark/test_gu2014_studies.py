"""Contraction beside its rivals in the study of Gu & Rigazio's table 5, on a few digits, and how strengths were chosen."""

from __future__ import annotations

from dataclasses import replace

import pytest

from advbench.registry.specs import Spec
from advbench.reproduction import engine, studies
from advbench.reproduction.papers.gu2014 import recipes, strengths

_TINY = {
    "dataset": "digits",
    "epochs": 2,
    "n_examples": 20,
    "calibration_examples": 10,
    "attack": ["lbfgs(steps=10)"],
    "batch": 20,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def table5(tmp_path_factory):
    """Both comparisons of table 5 at small, of two nets and one seed, its runs shrunk to a few digits."""
    study = next(one for one in studies.STUDIES if one.name == "gu2014.table5")
    names = [name for name in study.runs("small") if name.startswith(("N100", "AE400"))]
    runs = {name: {**study.runs("small")[name], **_TINY} for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studies, "STUDIES", (replace(study, runs=lambda _: runs, more_seeds={}),))
        out = tmp_path_factory.mktemp("table5")
        patch.setenv("ADVBENCH_CACHE", str(out / "cache"))
        (outcome,) = engine.reproduce("gu2014.table5", scale="small", out=out, seeds=(0,), jobs=1).outcomes
    assert not outcome.problem
    return outcome.comparisons


def values(comparison) -> dict[str, list[float]]:
    return {label: [pair.ours.values[0] for pair in pairs] for label, pairs in comparison.rows}


def test_the_printed_recipes_and_one_recipe_on_both_sides_are_two_verdicts(table5):
    printed, scratch = table5
    ours, beside = values(printed), values(scratch)
    (claim,) = printed.claims
    assert claim.id == "gu2014.claim.headline"
    nets = ("N100-100-10", "AE400-10")
    assert [part.text.partition(":")[0] for part in claim.parts[::2]] == [f"DCN - original, {net}" for net in nets]
    for net, distortion, error in zip(nets, claim.parts[::2], claim.parts[1::2], strict=True):
        dcn_error, dcn_far, error_before, far_before = ours[net]
        assert distortion.differences[0] == pytest.approx(dcn_far - far_before)
        assert error.differences[0] == pytest.approx(dcn_error - error_before)
        assert (error.relation, error.bound) == ("at most", 0.5)
    for net, distortion, error in zip(nets, claim.attributable[::2], claim.attributable[1::2], strict=True):
        contraction, tuned = beside[f"{net}, contraction"], beside[f"{net}, weight decay, tuned"]
        assert contraction == ours[net][:2]
        assert distortion.differences[0] == pytest.approx(contraction[1] - tuned[1])
        assert error.differences[0] == pytest.approx(contraction[0] - tuned[0])
    assert beside["AE400-10, weight decay 1e-3"] != ours["AE400-10"][2:]  # from scratch, and pre-trained
    assert len(scratch.notes) == 2


def test_the_picture_has_both_models(table5):
    (grid,) = table5[0].images
    assert grid.rows[0] == "original"
    assert [row.split(",")[0] for row in grid.rows[1:]] == ["adversarial", "noise"] * 2
    assert 0 < len(grid.columns) <= 10


def test_a_strength_is_the_largest_that_it_and_all_smaller_ones_of_the_grid_allow():
    assert strengths.largest({0.1: 3.0, 0.2: 3.25, 0.4: 3.3, 0.8: 3.0}, 3.0) == 0.2
    assert strengths.largest({0.1: 3.3, 0.2: 3.0}, 3.0) == 0.0
    assert strengths.largest({0.2: 3.1, 0.1: 3.0}, 3.0) == 0.2


def test_no_judged_seed_chose_a_strength():
    study = next(one for one in studies.STUDIES if one.name == "gu2014.table5")
    assert not {*study.seeds((0, 1, 2), "small")} & {*strengths.SEEDS}
    assert study.seeds((0, 1, 2), "small") == (0, 1, 2, 3, 4)


def test_strengths_are_searched_where_the_trainings_are_others():
    assert strengths.contraction("small", "N200-200-10").keywords.keys() == {"coefficient"}
    assert strengths.contraction("full", "N200-200-10") == Spec.of("deep-contractive", {"tolerance": 0.0025})


def test_recipes_have_both_conventions_of_the_decay_and_both_equations_where_they_fit():
    small, full = (recipes._recipes(scale, "N100-100-10") for scale in ("small", "full"))
    assert [spec.keywords.get("coefficient") for spec in list(small.values())[:2]] == [1e-3, 5e-4]
    assert not any("equation 5" in name for name in small)
    assert [spec.keywords["jacobian"] for name, spec in full.items() if "equation 5" in name] == ["network"]


@pytest.mark.parametrize("net", ["N100-100-10", "N200-200-10", "AE400-10"])
def test_contraction_and_decay_are_tried_at_as_many_strengths_and_neither_choice_is_the_last(net):
    grids = {method: strengths.grid(net, method) for method in ("contraction", "weight decay")}
    assert len(grids["contraction"]) == len(grids["weight decay"]) >= 6
    for method, grid in grids.items():
        assert list(grid) == sorted(grid)
        assert strengths.CHOSEN[net, method] in grid[:-1]  # the rule does not end on the edge
