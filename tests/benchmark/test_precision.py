"""Attacks in a lower precision: keys of their own, verdicts that are those of float32, and scores that never are lower."""

import numpy as np
import pytest
import torch
from torch import nn

import advbench
from advbench.config import make_config
from advbench.defenses.defended import Surrogate
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks.precision import HalfPrecision, in_precision, products


@pytest.fixture
def small(tmp_path, cache):
    return {
        "matrix": "white-box",
        "defense": "none",
        "attack": "pgd(steps=20)",
        "train_examples": 400,
        "epochs": 4,
        "epsilon": 0.1,
        "batch": 100,
        "device": "cpu",
        "jobs": 1,
        "backend": "threading",
        "out": tmp_path / "out",
    }


def robust(run):
    """The share of images that the model withstands, and what the record says of precision."""
    (key,) = run.cells
    record = Store(run.out).read(key)
    assert record.status == "ok", record.reason
    return Store(run.out).examples(key).report_correct.mean(), record.details["precision"]


def test_the_precision_is_a_part_of_the_key_of_what_attacks(small):
    plain, fast = (make_plan(make_config(**small | {"precision": name}), measure=False) for name in ("float32", "bfloat16"))
    assert plain.tasks.keys() == make_plan(make_config(**small), measure=False).tasks.keys()
    assert {plain.tasks[key].kind for key in set(plain.tasks) - set(fast.tasks)} == {"craft", "score"}


@pytest.mark.parametrize("architecture", ["gu2014/n100-100-10", "wong2018/small"])
def test_verdicts_of_bfloat16_are_those_of_float32_within_half_a_point(small, architecture):
    (plain, one), (fast, other) = (
        robust(advbench.run(**small | {"architecture": architecture, "precision": name})) for name in ("float32", "bfloat16")
    )
    assert one == {"crafted": "float32", "scored": "float32"}
    assert other == {"crafted": "bfloat16", "scored": "float32"}
    assert 0.02 < plain < 0.98  # there is something to differ in
    # Without a second attack of what fools the model in bfloat16 alone they differ by 0.8 and 2.8 points.
    assert abs(plain - fast) <= 0.005


def test_products_are_rounded_to_bfloat16_and_logits_are_not():
    layer = nn.Linear(64, 3, bias=False)
    x = torch.rand(5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = in_precision(Surrogate(layer), "bfloat16").model(x)
        expected = (x.bfloat16() @ layer.weight.bfloat16().T).float()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert not torch.equal(found, layer(x))
    assert in_precision(Surrogate(layer), "tf32").model is layer
    assert isinstance(in_precision(Surrogate(layer), "bfloat16").model, HalfPrecision)


def test_the_switches_are_put_back_and_float32_takes_tf32_from_convolutions_too():
    def switches():
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    before = switches()
    with products("float32"):
        assert switches() == (False, False)
        with products("tf32"):
            assert switches() == (True, True)
        assert switches() == (False, False)
    assert switches() == before


def test_scores_are_taken_without_tf32_and_threads_do_not_share_its_switch(small, monkeypatch):
    seen = []
    from advbench.tasks import evaluation

    counted = evaluation.count

    def watched(*arguments, **named):
        seen.append((torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32))
        return counted(*arguments, **named)

    monkeypatch.setattr(evaluation, "count", watched)
    done = advbench.run(**small | {"precision": "tf32", "n_examples": 20, "architecture": "gu2014/n100-100-10"})
    assert done.exit_code == 0
    assert seen
    assert set(seen) == {(False, False)}
    with pytest.raises(ValueError, match="threads"):
        make_plan(make_config(**small | {"precision": "tf32", "jobs": 2}), measure=False)
    with pytest.raises(ValueError, match="precision"):
        make_config(**small | {"precision": "float16"})
    assert np.isfinite(robust(done)[0])
