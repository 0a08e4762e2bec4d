"""The studies of Shaham et al. and of Mosca & Magoulas with their own nets, on a few digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from advbench.registry import registry
from advbench.reproduction import engine, studies
from advbench.reproduction.papers.mosca2018 import nets, rates, tables
from advbench.reproduction.papers.shaham2015 import epochs, fit
from advbench.reproduction.study import Ours
from advbench.reproduction.watching import Course
from advbench.results.papers import load
from advbench.tasks.craft import read_images
from advbench.tasks.images import scored_split

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
            patch.setattr(studies, "STUDIES", (replace(study, runs=lambda _: runs, more_seeds={}),))
            (outcome,) = engine.reproduce(name, scale="small", out=tmp_path / "out", seeds=(0,), jobs=1).outcomes
        assert not outcome.problem
        return outcome.comparisons

    return run


def _small_runs(name):
    (study,) = (one for one in studies.STUDIES if one.name == name)
    return study.runs("small").items()


def test_the_input_batch_norm_is_told_from_the_training(reproduce):
    (comparison,) = reproduce("shaham2015.input_bn", epochs=5, train_examples=600, learning_rate=0.03, n_examples=60)
    assert [label for label, _ in comparison.rows] == [
        "baseline",
        "baseline, batch norm of the input",
        "robust_linf",
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


def test_the_fixed_set_is_shown_to_a_net_of_the_same_seed(reproduce, tmp_path):
    """By hand, from the nets and images that the run left: the share of the set that each robust net gets right."""
    net = "gu2014/n100-100-10"
    changes = {"architecture": [net], "epochs": 10, "n_examples": 60, "batch": 60}
    (comparison,) = reproduce("shaham2015.table1", **changes)
    (again,) = reproduce("shaham2015.table1", **changes)  # from what was kept
    assert dict(again.rows)["robust_l2"] == dict(comparison.rows)["robust_l2"]
    data = registry.load_dataset("digits", None)
    split = scored_split(data, 60)
    runs = {
        run: {**own, **_TINY, "architecture": [net], "epochs": 10, "n_examples": 60, "batch": 60}
        for run, own in _small_runs("shaham2015.table1")
    }
    plans = {run: engine._plan(own, (0,), tmp_path / "out", {}, {}) for run, own in runs.items()}
    found = {run: engine._findings(plan) for run, plan in plans.items()}
    shown = found["own gradients"].one(seed=0, defense="robust-l2")
    for place, norm in enumerate(("l1", "l2", "linf"), start=2):
        right = total = 0
        for cell in found[norm].cells:
            (craft,) = cell.record.details["crafts"]
            x_adv = read_images(craft, tmp_path / "out")
            with torch.no_grad():
                baseline = found[norm].defended(cell).model
                chosen = (baseline(split.x).argmax(1) == split.y) & (baseline(x_adv).argmax(1) != split.y)
                answers = found["own gradients"].defended(shown).model(x_adv).argmax(1) == split.y
            right, total = right + int((answers & chosen).sum()), total + int(chosen.sum())
        value = dict(comparison.rows)["robust_l2"][place].ours.values[0]
        assert total
        assert value == pytest.approx(100 * right / total)


def test_a_training_that_kept_no_weights_has_the_course_that_it_noted(reproduce):
    (comparison,) = reproduce("shaham2015.fig5", architecture=["gu2014/n100-100-10"], epochs=3)
    (plot,) = comparison.plots
    assert [series.name for series in plot.series] == ["baseline", "robust_l1", "robust_l2", "robust_linf"]
    assert all(series.x == (1.0, 2.0, 3.0) for series in plot.series)
    assert all(0 <= ours.values[0] <= 100 for series in plot.series for ours in series.ours)
    first = [series.ours[0].values[0] for series in plot.series]
    assert any(value > 1 for value in first)  # percent, not shares


def test_a_robust_step_is_two_forwards_and_two_backwards(reproduce):
    (comparison,) = reproduce("shaham2015.time", architecture=["gu2014/n100-100-10"])
    rows = dict(comparison.rows)
    assert [pair.ours.values[0] for pair in rows["baseline"]] == [1.0, 1.0, 1.0]
    for net in ("robust_l1", "robust_l2", "robust_linf"):
        ratio, forwards, backwards = rows[net]
        assert ratio.paper == 2
        assert ratio.ours.values[0] > 0
        assert (forwards.ours.values[0], backwards.ours.values[0]) == (2.0, 2.0)
    (claim,) = comparison.claims
    assert [part.differences[0] for part in claim.parts] == [rows[net][0].ours.values[0] - 2 for net in list(rows)[1:]]


def test_under_and_over_fitted_nets_stand_beside_those_of_the_tables(reproduce):
    (comparison,) = reproduce("shaham2015.fit", architecture=["gu2014/n100-100-10"])
    assert not comparison.claims
    rows = dict(comparison.rows)
    assert len(rows) == 12
    for setting in ("under-fitted", "as in the tables", "over-fitted"):
        (bare, robust) = (rows[f"{setting}, {net}"] for net in ("baseline", "robust_l2"))
        assert bare[2].ours.values[0] == bare[4].ours.values[0] == 0
        assert robust[2].ours.values[0] == pytest.approx(robust[1].ours.values[0] - bare[1].ours.values[0])
        assert robust[4].ours.values[0] == pytest.approx(robust[3].ours.values[0] - bare[3].ours.values[0])
    runs = fit._fit_runs("small")
    assert [run["weight_decay"] for run in runs.values()] == [1e-3, 1e-3, 0.0]
    steps = [run["epochs"] * run["learning_rate"] for run in runs.values()]
    assert steps[0] < steps[1] < steps[2]


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
