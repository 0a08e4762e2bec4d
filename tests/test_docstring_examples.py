"""The examples in docstrings run and give what they show; the modules that teach have some, and so has every public name."""

import doctest
import importlib
import io

import numpy as np
import pytest
import torch

import advbench

MODULES = [
    "advbench.attacks.balls",
    "advbench.attacks.hyperplane",
    "advbench.attacks.losses",
    "advbench.attacks.nearest",
    "advbench.attacks.rng",
    "advbench.attacks.threat",
    "advbench.clocks",
    "advbench.defenses.kernels.covariance",
    "advbench.defenses.kernels.covariance_operator",
    "advbench.defenses.kernels.dense_penalty",
    "advbench.defenses.kernels.jacobian",
    "advbench.defenses.kernels.layers",
    "advbench.defenses.kernels.projection",
    "advbench.registry.specs",
    "advbench.reports.evaluation_result",
    "advbench.results.entries",
    "advbench.results.ranking",
    "advbench.results.seeds",
    "advbench.results.significance",
    "advbench.results.statistics",
    "advbench.user_models.attacking",
    "advbench.user_models.target",
]
ON_A_RUN = [
    "advbench.api",
    "advbench.records.evidence",
    "advbench.records.fixed_sets",
    "advbench.records.gating",
    "advbench.records.kept_images",
    "advbench.records.reporting",
    "advbench.records.versions",
]
"""Modules whose examples read the folder that the example of `advbench.run` leaves behind."""


def examples_of(module: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), module)
    return [test for test in found if test.examples]


def failures(test: doctest.DocTest) -> str:
    """What an example gives in place of what it shows; empty if it does as it says."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - what an example may draw from without naming a generator
    told = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(test, out=told.write)
    return told.getvalue()


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """A working folder in which the example of `advbench.run` has run."""
    folder = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        (example,) = (test for test in examples_of("advbench.api") if test.name == "advbench.api.run")
        assert not failures(example)
        yield folder


@pytest.mark.parametrize("module", MODULES)
def test_examples_give_what_they_show(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path))
    tests = examples_of(module)
    assert tests, f"{module} has no example"
    assert not "".join(failures(test) for test in tests)


@pytest.mark.parametrize("module", ON_A_RUN)
def test_examples_on_a_finished_run_give_what_they_show(module, finished_run):
    tests = examples_of(module)
    assert tests, f"{module} has no example"
    assert not "".join(failures(test) for test in tests)


def test_every_public_name_has_an_example_that_is_run():
    names = {getattr(advbench, name) for name in advbench.__all__ if name != "__version__"}
    assert {one.__module__ for one in names} <= {*MODULES, *ON_A_RUN}
    for one in names:
        assert ">>> " in (one.__doc__ or ""), one


def test_an_example_that_shows_something_else_fails():
    (example,) = doctest.DocTestFinder().find(_wrong, "wrong", globs={})
    assert "Expected:\n    3" in failures(example)


def _wrong() -> None:
    """An example that is wrong.

    >>> 1 + 1
    3
    """
