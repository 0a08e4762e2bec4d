"""The colour studies, which need a GPU at their own size, on small crops of real CIFAR-10 images."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from advbench.reproduction import engine, studies
from advbench.reproduction.papers.shaham2015 import nets

_SUBSET = Path(os.environ.get("ADVBENCH_DATA", "")) / "cifar10-small.npz"
_TINY = {"epochs": 2, "train_examples": 32, "n_examples": 6, "batch_size": 16, "batch": 6, "device": "cpu"}

pytestmark = pytest.mark.skipif(not _SUBSET.is_file(), reason="no cifar10-small.npz in $ADVBENCH_DATA")


@pytest.fixture
def crops(tmp_path):
    """The middle 16 x 16 pixels of 100 training and 20 test images."""
    with np.load(_SUBSET) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test")}
    middle = np.s_[:, 8:24, 8:24]
    path = tmp_path / "crops.npz"
    np.savez(
        path,
        x_train=arrays["x_train"][:100][middle],
        y_train=arrays["y_train"][:100],
        x_test=arrays["x_test"][:20][middle],
        y_test=arrays["y_test"][:20],
    )
    return path


def _reproduce(name, dataset, out, monkeypatch, keep=lambda run: True, **changes):
    """The study's own code at full, with runs that are kept but for the data set and the budget's size."""
    (study,) = (one for one in studies.STUDIES if one.name == name)
    runs = {run: {**own, **_TINY, **changes, "dataset": dataset} for run, own in study.runs("full").items() if keep(run)}
    monkeypatch.setattr(studies, "STUDIES", (replace(study, runs=lambda _: runs, scales=("full",)),))
    result = engine.reproduce(name, scale="full", out=out, seeds=(0,), jobs=1)
    (outcome,) = result.outcomes
    assert not outcome.problem
    return outcome.comparisons


def test_table_2_of_shaham(crops, tmp_path, cache, monkeypatch):
    """With a small net, for every cell of the table loads its net."""
    changes = {"architecture": ["gu2014/n100-100-10"]}
    (comparison,) = _reproduce("shaham2015.table2", f"npz:{crops}", tmp_path / "out", monkeypatch, **changes)
    rows = dict(comparison.rows)
    assert rows.keys() == {"baseline", "robust_l1", "robust_l2", "robust_linf"}
    assert rows["baseline"][0].paper == 90.79
    assert rows["robust_linf"][1].paper == 65.01
    assert all(0 <= pairs[0].ours.values[0] <= 100 for pairs in rows.values())


def test_shahams_vgg_is_attacked(crops, tmp_path, cache, monkeypatch):
    radius = nets.CIFAR_RADII["linf"]
    (comparison,) = _reproduce("shaham2015.fig6", f"npz:{crops}", tmp_path / "out", monkeypatch, epsilon=[radius], epochs=1)
    (plot,) = comparison.plots
    assert [series.name for series in plot.series] == ["baseline", "robust_l1", "robust_l2", "robust_linf"]
    assert all(series.x == pytest.approx((0.0, radius)) for series in plot.series)


def test_mosca_on_whitened_cifar(crops, tmp_path, cache, monkeypatch):
    zca = f"zca:npz:{crops}"
    for name in ("mosca2018.table4", "mosca2018.table5"):
        comparisons = _reproduce(name, zca, tmp_path / "out", monkeypatch, keep=lambda run: run.startswith("CIFAR-10-"))
        monkeypatch.undo()
        monkeypatch.setenv("ADVBENCH_CACHE", str(cache))
        for comparison in comparisons:
            assert [label.partition(",")[0] for label, _ in comparison.rows][:1] == ["CIFAR-10-CNN"]
            of_paper = [i for i, (heading, _) in enumerate(comparison.columns) if "evaluation mode" not in heading]
            pairs = [pairs[i] for _, pairs in comparison.rows for i in of_paper]
            assert len(of_paper) == (2 if name == "mosca2018.table4" else 4)
            assert all(pair.paper is not None and 0 <= pair.ours.values[0] <= 100 for pair in pairs)


def test_the_updates_of_whitened_images_are_shown(crops, tmp_path, cache, monkeypatch):
    keep = lambda run: run == "CIFAR-10-CNN"  # noqa: E731
    (comparison,) = _reproduce("mosca2018.fig5", f"zca:npz:{crops}", tmp_path / "out", monkeypatch, keep)
    (grid,) = comparison.images
    assert len({*grid.rows}) == len(grid.rows) > 5  # an image of each class among the 32
    assert grid.columns == ("image", "1", "2", "sum")
    (series,) = comparison.plots[0].series
    assert 0 < series.ours[0].values[0] < series.ours[1].values[0]
