import pytest


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ADVBENCH_CACHE", str(folder))
    return folder


@pytest.fixture
def settings(tmp_path):
    """The smallest run that has all three matrices and a stochastic defense."""
    return {
        "out": tmp_path / "out",
        "defense": "none,pgd-linf(steps=2),input-noise(passes=2)",
        "attack": "fgsm,pgd(steps=3),deepfool(steps=3)",
        "architecture": "gu2014/n100-100-10",
        "substitute": "gu2014/n100-100-10",
        "substitute_rounds": 1,
        "substitute_seeds": 20,
        "draws": 2,
        "score_draws": 3,
        "n_examples": 24,
        "train_examples": 300,
        "epochs": 2,
        "batch": 16,
        "device": "cpu",
        "jobs": 1,
    }
