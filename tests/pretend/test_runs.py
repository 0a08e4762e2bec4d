"""Whole runs on the pretend device: every kind of task, and outcomes that are those of the processor."""

import numpy as np
import pytest

import advbench
from advbench.results.store import Store

SETTINGS = {
    "dataset": "digits",
    "defense": "none,input-noise(passes=2),magnet",
    "attack": "fgsm,deepfool(steps=2)",
    "architecture": "gu2014/n100-100-10",
    "substitute": "gu2014/n100-100-10",
    "substitute_rounds": 1,
    "substitute_seeds": 20,
    "score_draws": 2,
    "calibration_examples": 8,
    "n_examples": 8,
    "train_examples": 100,
    "epochs": 1,
    "batch": 8,
    "jobs": 1,
    "backend": "threading",
}


def outcomes(out):
    """The answers of every cell by its names, and the name of the device; no cell has failed."""
    found = {}
    for key, record in Store(out).readable():
        assert record.status == "ok", record.reason
        source = "" if record.source is None else record.source["label"]
        examples = Store(out).examples(key)
        found[record.target["label"], record.attack["label"], source] = examples.report_correct, record.measured["device"]
    return found


@pytest.mark.parametrize(
    "how",
    [
        {"matrix": "white-box"},
        {"matrix": "white-box", "defense": "none", "attack": "pgd(steps=2)", "unit_test": True, "unit_test_images": 2},
        {"matrix": "black-box", "defense": "none,input-noise(passes=2)", "attack": "fgsm"},
        {"matrix": "transfer", "defense": "none,robust-linf", "attack": "fgsm,pgd(steps=2)"},
        {
            "matrix": "white-box",
            "defense": "none",
            "attack": "correlated-noise,estimated-noise",
        },
    ],
    ids=["white-box", "unit test", "black-box", "transfer", "calibrated"],
)
def test_a_run_says_what_it_says_on_the_processor(tmp_path, monkeypatch, how):
    found = []
    for place in ("cpu", "pretend"):
        monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path / f"cache-{place}"))
        advbench.run(**{**SETTINGS, **how}, device=place, out=tmp_path / place)
        found.append(outcomes(tmp_path / place))
    assert found[0].keys() == found[1].keys()
    for name, (answers, device) in found[1].items():
        assert device == "a pretended device"
        assert np.abs(answers - found[0][name][0]).sum() <= 1, name  # trainings may differ in the last bit
