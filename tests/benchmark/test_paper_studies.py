"""The studies of Shaham et al. and of Mosca & Magoulas with their own nets, on a few digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from advbench.reproduction import engine, studies
from advbench.reproduction.papers.mosca2018 import nets, rates, tables
from advbench.reproduction.papers.shaham2015 import epochs
from advbench.reproduction.study import Ours
from advbench.reproduction.watching import Course
from advbench.results.papers import load

_TINY = {
    "dataset": "digits",
    "epochs": 2,
    "train_examples": 200,
    "n_examples": 20,
    "batch_size": 50,
    "batch": 20,
    "device": "cpu",
}


@pytest.fixture
def reproduce(tmp_path, cache, monkeypatch):
    """A study's own code at small, its runs shrunk to a few digits."""

    def run(name, keep=lambda run: True, **changes):
        (study,) = (one for one in studies.STUDIES if one.name == name)
        runs = {run: {**own, **_TINY, **changes} for run, own in study.runs("small").items() if keep(run)}
        with monkeypatch.context() as patch:
            patch.setattr(studies, "STUDIES", (replace(study, runs=lambda _: runs),))
            (outcome,) = engine.reproduce(name, scale="small", out=tmp_path / "out", seeds=(0,), jobs=1).outcomes
        assert not outcome.problem
        return outcome.comparisons

    return run


def test_the_input_batch_norm_is_told_from_the_training(reproduce):
    (comparison,) = reproduce("shaham2015.input_bn", epochs=5, train_examples=600, n_examples=60, batch=60)
    assert [label for label, _ in comparison.rows] == [
        "baseline",
        "baseline, batch norm of the input",
        "robust_linf",
        "robust_linf, batch norm of the input",
    ]
    values = {label: [pair.ours.values[0] for pair in pairs] for label, pairs in comparison.rows}
    assert values["baseline"] != values["baseline, batch norm of the input"]
    clean, own = (claim.parts[0].differences[0] for claim in comparison.claims)
    with_layer = values["baseline, batch norm of the input"]
    assert [clean, own] == pytest.approx(np.subtract(values["robust_linf"], with_layer).tolist())


def test_epochs_are_counted_to_within_half_a_point():
    course = Course((50.0, 90.0, 89.4, 89.6, 90.0), (0.0,) * 5)
    assert epochs._converged(course) == 2
    assert epochs._converged(replace(course, clean=(50.0, 60.0, 70.0))) == 3


def test_the_fixed_set_is_what_the_baseline_gets_wrong(reproduce):
    (comparison,) = reproduce("shaham2015.table1", architecture=["gu2014/n100-100-10"])
    rows = {label: [pair.ours.values[0] for pair in pairs] for label, pairs in comparison.rows}
    fixed = [value for value in rows["baseline"][1:] if not np.isnan(value)]
    assert fixed
    assert not any(fixed)
    assert comparison.images
    assert all(grid.rows == ("clean", "adversarial", "change") for grid in comparison.images)


def test_table_5_compares_both_sets_of_adversarials(reproduce, monkeypatch):
    monkeypatch.setattr(tables, "LEARNED", 0.0)
    training, own, shared = reproduce("mosca2018.table5", keep=lambda run: run == "MNIST-CNN")
    assert [label for label, _ in training.rows] == ["MNIST-CNN, control", "MNIST-CNN, sgm"]
    assert training.rows[0][1][-1] == own.rows[0][1][2]._replace(paper=None)  # epsilon 0.1 in evaluation mode
    assert training.rows[0][1][2].paper == 84.16
    assert not training.claims
    (control, _), (sgm, _) = own.rows
    assert (control, sgm) == ("MNIST-CNN, control", "MNIST-CNN, sgm")
    assert own.rows[0] == shared.rows[0]  # the control's own adversarials are the shared set
    assert own.rows[0][1][2].paper == 84.16
    for comparison in (own, shared):
        claims = {claim.id: claim for claim in comparison.claims}
        values = {label: [pair.ours.values[0] for pair in pairs] for label, pairs in comparison.rows}
        gains = np.subtract(values[sgm], values[control])
        assert claims["mosca2018.claim.headline"].parts[0].differences[0] == pytest.approx(gains.mean())
        assert claims["mosca2018.claim.headline"].withheld.verdict == "not decidable here"  # one cluster
        strong = [part.differences[0] for part in claims["mosca2018.claim.strong_cells"].parts]
        assert strong == pytest.approx(gains[2:].tolist())


def test_no_claim_is_drawn_of_a_net_that_has_not_learned(reproduce):
    _, own, _ = reproduce("mosca2018.table5", architecture=["gu2014/n100-100-10"], keep=lambda run: run == "MNIST-DNN")
    assert all(not claim.parts and "95% clean" in claim.untested for claim in own.claims)
    assert any("of which no claim is drawn: MNIST-DNN" in note for note in own.notes)


def test_clusters_decide_the_papers_level():
    four = tables._by_clusters([1.0, 2.0, 3.0, 0.5])
    assert four.verdict == "not decidable here"
    assert "4 clusters" in four.reason
    assert "p = 0.0625" in four.reason
    assert tables._by_clusters([1.0] * 8) is None  # 1 / 256
    mixed = tables._by_clusters([1.0] * 7 + [-3.0])
    assert mixed.verdict == "undecided"


def test_figure_3_counts_what_each_of_two_gets_right(reproduce):
    (comparison,) = reproduce("mosca2018.fig3", keep=lambda run: run == "MNIST-CNN")
    ((label, pairs),) = comparison.rows
    assert label == "MNIST-CNN"
    assert sum(pair.ours.values[0] for pair in pairs) == pytest.approx(100)
    if pairs[2].ours.values[0]:
        assert comparison.images[0].rows == ("clean", "step of 0.1")


def test_rates_and_both_gradients_are_named(reproduce):
    (comparison,) = reproduce("mosca2018.input_lr", architecture=["gu2014/n100-100-10"])
    assert [label for label, _ in comparison.rows] == [
        "control",
        "sgm, rate -0.2, gradient of each image's own loss",
        "sgm, rate 0.2, gradient of each image's own loss",
        "sgm, rate 1, gradient of each image's own loss",
        "sgm, rate 0.2, gradient of the batch's mean loss",
        "sgm, rate 0.2, gradient of each image's own loss, updates of one epoch",
        f"Gaussian noise of {rates.STRENGTH:g}",
        f"steps of FGSM of {rates.STRENGTH:g}",
    ]


def test_curves_are_the_trainings_own(reproduce):
    (comparison,) = reproduce("mosca2018.fig1", keep=lambda run: run == "MNIST-CNN", architecture=["gu2014/n100-100-10"])
    (plot,) = comparison.plots
    assert [series.name for series in plot.series] == ["control", "sgm"]
    for series in plot.series:
        assert series.x == (1.0, 2.0)
        assert all(0 < ours.values[0] < 100 for ours in series.ours)


def test_medians_are_shown_and_wilcoxons_test_is_labelled():
    assert Ours((1.0, 2.0, 9.0), "median").centre == 2.0
    assert Ours((1.0, 2.0, 9.0)).centre == 4.0
    gains = [0.1, 0.2, 0.3, -0.05, 0.4]
    note = tables._statistic("here", gains, "greater", "p = 1")
    assert "the paper's statistic, over 5 pairs of medians: one-sided p = 0.0625, 4 gains and 1 losses" in note
    assert "nothing to rank" in tables._statistic("here", [0.0, 0.0], "greater", "")


def test_wilcoxons_test_of_the_printed_table_is_what_the_summary_says():
    table = load("mosca2018").tables["mosca2018.table5"]
    settings = list(dict.fromkeys(row[0] for row in table.rows))
    gains = [
        round(table.cell(f"eps_{epsilon:g}", setting, "sgm") - table.cell(f"eps_{epsilon:g}", setting, "control"), 2)
        for setting in settings
        for epsilon in nets.EPSILONS
    ]
    assert "one-sided p = 0.0036" in tables._statistic("printed", gains, "greater", "")
