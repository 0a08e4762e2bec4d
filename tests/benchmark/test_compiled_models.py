"""Attacks on compiled models: a key of their own, the same images but for rounding, and scores by the model as it is."""

import numpy as np
import pytest
import torch

import advbench
from advbench.config import make_config
from advbench.defenses.defended import Surrogate
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks import compiling, surrogates
from advbench.tasks.compiling import check_compiler, compiled

CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small(settings):
    return settings | {"matrix": "white-box", "defense": "none", "attack": "pgd(steps=3)"}


@pytest.fixture
def traced(monkeypatch):
    """The compiler's front end without its back end, which takes minutes: the traced graph runs as it is."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    monkeypatch.setattr("advbench.plan.plan.check_compiler", lambda device: None)


def test_compiling_is_a_part_of_the_key_of_what_attacks(small, traced):
    plain, fast = (make_plan(make_config(**small | {"compile": flag}), measure=False) for flag in (False, True))
    changed = {plain.tasks[key].kind for key in set(plain.tasks) - set(fast.tasks)}
    assert changed == {"craft", "score"}
    assert {plain.tasks[key].kind for key in set(plain.tasks) & set(fast.tasks)} == {"train", "clean", "diagnose"}


def test_only_what_is_attacked_is_compiled_and_the_images_are_those_of_the_plain_model(small, traced, monkeypatch):
    made = []

    def watched(source):
        made.append(compiled(source))
        return made[-1]

    monkeypatch.setattr(surrogates, "compiled", watched)
    plain = advbench.run(**small)
    assert not made
    fast = advbench.run(**small | {"compile": True})
    assert fast.exit_code == 0, fast.failures
    (source,) = made
    assert isinstance(source.model, torch._dynamo.OptimizedModule)
    one, other = (Store(run.out).examples(run.cells[0]) for run in (plain, fast))
    np.testing.assert_array_equal(one.report_correct, other.report_correct)
    np.testing.assert_allclose(one.distance_l2, other.distance_l2, rtol=1e-4)


def test_a_stochastic_model_stays_as_it_is():
    source = Surrogate(torch.nn.Identity(), stochastic=True)
    assert compiled(source) is source


def test_a_missing_compiler_is_one_clear_line(small, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"Expected a C\+\+ compiler for `compile` \(g\+\+ or clang\+\+ .*leave") as caught:
        make_plan(make_config(**small | {"compile": True}), measure=False)
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match="no-such-compiler"):
        check_compiler(CPU)
    make_plan(make_config(**small), measure=False)


@pytest.mark.slow
def test_a_really_compiled_model_answers_as_the_plain_one():
    try:
        check_compiler(CPU)
    except ValueError as error:
        pytest.skip(str(error))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    fast = compiled(Surrogate(model)).model
    for n in (5, 3):
        x = torch.rand(n, 1, 4, 4)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x))
