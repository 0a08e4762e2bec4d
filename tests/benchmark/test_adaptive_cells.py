"""Test-time defenses in whole runs: masked gradients, detectors, query attacks and the attacker who ignores a defense."""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks.draws import CAP
from advbench.attacks.rng import ExampleRNG
from advbench.config import make_config
from advbench.defenses.defended import Defended, Detector
from advbench.defenses.inference.composition import in_front_of, purified
from advbench.plan.plan import make_plan
from advbench.registry import registry
from advbench.results.statistics import robust
from advbench.results.store import Store

pytestmark = pytest.mark.usefixtures("cache", "masked")


class Rounding(nn.Module):
    """Nine grey levels, whose gradient is zero wherever there is one."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(8 * x) / 8


class Detached(nn.Module):
    """The same, through which no gradient flows at all."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.round(8 * x.detach()) / 8


class Saturated(nn.Module):
    """Logits times ten thousand: the softmax is 0 or 1 in any precision."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.base(x)


class Shaken(nn.Module):
    """Tiny waves on the logits whose random slopes drown the gradient, the mean over two passes."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        logits = self.base(x)
        for number in range(2):
            shape = (logits.shape[1], x[0].numel())
            slopes = rng.fork("wave", number).normal(shape, x.dtype)
            logits = logits + 0.05 * torch.sin(300 * torch.einsum("nkd,nd->nk", slopes, x.flatten(1)))
        return logits


class Brightness(nn.Module):
    """The mean of the upper half of an image minus a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : x.shape[2] // 2].flatten(1).mean(dim=1) - self.threshold


class Everything(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 + 0 * x.flatten(1).sum(dim=1)


@dataclasses.dataclass(frozen=True)
class Masked:
    """A test-time defense of one of the forms below."""

    form: str = "rounding"

    @property
    def inputs(self) -> Mapping[str, str]:
        return {"base": "none"}

    def build(self, architecture, data, inputs):
        base = inputs["base"]
        match self.form:
            case "rounding" | "detached":
                return purified(base, Rounding() if self.form == "rounding" else Detached(), stochastic=False)
            case "saturated":
                return in_front_of(base, lambda model, _: Saturated(model), stochastic=False)
            case "shaken":
                return in_front_of(base, lambda model, _: Shaken(model), stochastic=True)
            case "nothing" | "brightness" | "everything":
                watch = {"brightness": Brightness, "everything": Everything}.get(self.form)
                return purified(base, nn.Identity(), stochastic=False, detector=Detector(watch()) if watch else None)

    def fit(self, architecture, data, *, inputs, seed, device, budget, progress=None):
        fitted = self.build(architecture, data, inputs)
        if self.form == "brightness":
            watch = fitted.detector.model
            watch.threshold.copy_(watch(data.validation.x).quantile(0.9) + watch.threshold)
        return fitted


@pytest.fixture
def masked(monkeypatch):
    """The defense ``masked`` in the registry."""
    module = types.ModuleType(__name__)
    module.Masked = Masked
    monkeypatch.setitem(registry.defenses.own, "masked", f"{__name__}:Masked")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or module)


@pytest.fixture
def small(settings):
    changes = {"matrix": "white-box", "attack": "pgd(steps=10)", "epochs": 4, "train_examples": 800, "n_examples": 60}
    return {name: value for name, value in (settings | changes).items() if name != "draws"}


def records(result, **wanted):
    found = [Store(result.out).load(key)[:2] for key in result.cells]
    return [one for one in found if all(getattr(one[0], name) == value for name, value in wanted.items())]


def accuracy(record, examples):
    return float(robust(record, examples).mean())


@pytest.mark.parametrize("form", ["rounding", "saturated", "shaken"])
def test_a_masked_gradient_does_not_make_a_defense_look_robust(small, form):
    draws = {"draws": 1} if form == "shaken" else {}  # as plain PGD, which knows nothing of randomness
    result = advbench.run(**small | {"defense": f"none,masked(form='{form}')"} | draws)
    ((record, examples),) = [one for one in records(result, matrix="white-box") if one[0].target["label"] != "none"]
    ((none, bare),) = [one for one in records(result, matrix="white-box") if one[0].target["label"] == "none"]
    assert record.details["candidates"]["faithful"] > 0.6  # plain PGD says that it is robust
    assert accuracy(none, bare) < 0.4
    assert accuracy(record, examples) < 0.4
    assert accuracy(record, examples) <= min(rate for rate in record.details["candidates"].values()) + 1e-9 + (
        0.1 if form == "shaken" else 0.0  # select draws choose, report draws count
    )


def test_draws_that_are_not_enough_are_said(small):
    given = small | {"defense": "masked(form='shaken')", "n_examples": 10, "attack": "fgsm", "epochs": 1}
    result = advbench.run(**given)
    details = records(result, matrix="white-box")[0][0].details
    assert list(details["preparation"]) == ["faithful"]  # its other surrogate is not random
    assert details["draws"] == {"faithful": CAP, "base": 1}
    assert details["preparation"]["faithful"]["draws"] == CAP
    assert details["preparation"]["faithful"]["capped"]
    assert min(details["preparation"]["faithful"]["cosines"]) < 0.9
    assert f"{CAP} draws were not enough" in (result.out / "leaderboard.md").read_text()


def test_a_surrogate_without_a_gradient_leaves_the_cell_to_the_others(small):
    attacks = "pgd(steps=10),deepfool(steps=5),worst-case(attacks=['square(queries=10)', 'pgd(steps=3)'])"
    changes = {"defense": "masked(form='detached')", "attack": attacks, "calibration_examples": 20}
    result = advbench.run(**small | changes)
    assert result.exit_code == 0
    for record, examples in records(result, matrix="white-box"):
        assert record.details["candidates"]["faithful"] is None
        others = [rate for name, rate in record.details["candidates"].items() if name != "faithful"]
        assert accuracy(record, examples) <= min(others) + 1e-9
    pgd = next(one for one in records(result, matrix="white-box") if one[0].attack["name"] == "pgd")
    assert accuracy(*pgd) < pgd[1].clean_correct.mean() - 0.3


def test_no_gradient_anywhere_is_a_row_that_says_so(small, monkeypatch):
    monkeypatch.setattr(
        Masked, "build", lambda self, architecture, data, inputs: Defended(nn.Sequential(Detached(), inputs["base"].model))
    )
    result = advbench.run(**small | {"defense": "masked"})
    assert result.exit_code == 1
    ((record, examples),) = records(result)
    assert record.status == "error"
    assert examples is None
    assert "Expected a surrogate whose logits depend on the images differentiably" in record.reason


def test_a_detector_that_rejects_everything_loses_all_clean_images(small):
    result = advbench.run(**small | {"defense": "masked(form='everything')"})
    for record, examples in records(result):
        assert record.status == "ok", record.reason
        assert (examples.clean_rejected == 1).all()
        assert (examples.clean_correct == 0).all()
        assert accuracy(record, examples) == 0
        assert (examples.clean_prediction == examples.label).mean() > 0.6


def test_a_detected_adversarial_has_failed_and_the_attack_knows_it(small):
    result = advbench.run(**small | {"defense": "masked(form='nothing'),masked(form='brightness')"})
    ((record, examples),) = [one for one in records(result, matrix="white-box") if "brightness" in one[0].target["label"]]
    rejected = examples.report_score > 0
    assert np.array_equal(examples.report_rejected, rejected.astype(int))
    wrong = examples.report_wrong == 1
    assert np.array_equal(examples.report_correct == 1, rejected | ~wrong)
    right = examples.clean_prediction == examples.label
    assert np.array_equal(examples.clean_correct == 1, right & (examples.clean_score <= 0))
    assert 0 < examples.clean_rejected.mean() < 0.3
    assert record.details["preparation"]["faithful"]["scale"] > 0
    unwatched = next(one for one in records(result, matrix="white-box") if "nothing" in one[0].target["label"])
    evaded = robust(record, examples)[examples.clean_correct == 1].mean()
    assert evaded <= robust(*unwatched).mean() + 0.25  # nearly as far as without a detector


def test_an_evasion_stands_beside_every_attack_on_a_detector_and_breaks_what_it_guards(small):
    squeezing = "feature-squeezing(bits=1,false_alarms=0.05)"
    result = advbench.run(**small | {"attack": "pgd,deepfool", "defense": f"none,{squeezing}", "epsilon": 0.2})
    for record, examples in records(result, matrix="white-box"):
        candidates = record.details["candidates"]
        if record.target["label"] == "none":
            assert list(candidates) == ["faithful"]
            continue
        evading = {"faithful", "follow", "joint", "bpda"}
        assert set(candidates) == {"base", *evading, *(f"{name}, selective-pgd" for name in evading)}
        assert candidates["base"] > 0.3  # who ignores the detector is caught
        assert candidates["faithful, selective-pgd"] < 0.25
        assert accuracy(record, examples) < 0.25
        assert record.counts["backwards"] > 0
    crafts = [one[0].details["crafts"] for one in records(result, matrix="white-box") if one[0].target["label"] != "none"]
    assert crafts[0][-1] == crafts[1][-1]  # crafted once


def test_the_attacker_who_ignores_a_defense_has_a_cell_of_the_same_craft(small):
    config = make_config(**small | {"matrix": "all", "defense": "none,masked(form='rounding')"})
    plan = make_plan(config)
    scores = [plan.tasks[key] for key in plan.cells]
    (oblivious,) = [task for task in scores if task.content.matrix == "oblivious"]
    (white_box,) = [
        task for task in scores if task.content.matrix == "white-box" and task.content.target == oblivious.content.target
    ]
    base = [each.name for each in white_box.facts.candidates].index("base")
    assert oblivious.content.crafts == (white_box.content.crafts[base],)
    assert oblivious.facts.source.described() == {"label": "base", "kind": "surrogate"}
    crafts = {
        each.name: plan.tasks[key] for each, key in zip(white_box.facts.candidates, white_box.content.crafts, strict=True)
    }
    # A marginal success on the model behind the defense is no reason to stop.
    assert {name: craft.content.transfer for name, craft in crafts.items()} == {
        "bpda": False,
        "faithful": False,
        "base": True,
    }
    assert "none" not in oblivious.facts.target.label


def test_query_attacks_ask_the_model_itself_once_and_are_black_box(small):
    given = small | {"attack": "fgsm,hop-skip-jump(queries=60),square(queries=20)", "defense": "masked(form='detached')"}
    plan = make_plan(make_config(**given | {"matrix": "white-box,black-box"}))
    crafts = [task for task in plan.tasks.values() if task.kind == "craft"]
    asked = [task for task in crafts if task.content.attack.name != "fgsm"]
    assert len(asked) == 2
    assert all(task.content.attacked.surrogate is None for task in asked)
    result = advbench.run(**given)
    assert result.exit_code == 0
    for name, label in (("hop-skip-jump", "label queries"), ("square", "score queries")):
        ((record, examples),) = [one for one in records(result) if one[0].attack["name"] == name]
        assert (record.matrix, record.source) == ("black-box", {"label": label, "kind": "queries"})
        assert record.counts["queries"] > 0
        assert list(record.details["candidates"]) == ["itself"]
        assert accuracy(record, examples) < examples.clean_correct.mean()


def test_a_black_box_sweep_of_radii_over_a_test_time_defense(small):
    changes = {"matrix": "black-box", "attack": "fgsm", "epsilon": "0.05,0.15,0.4", "defense": "input-noise(passes=2)"}
    result = advbench.run(**small | changes)
    rates = {record.threat["epsilon"]: accuracy(record, examples) for record, examples in records(result)}
    assert sorted(rates) == [0.05, 0.15, 0.4]
    assert rates[0.05] > rates[0.4]
    assert len({record.details["substitute"]["fidelity"] for record, _ in records(result)}) == 1


def test_calibrated_draws_repeat_resume_and_use_no_scored_image(small, tmp_path):
    given = small | {"defense": "input-noise(passes=1,sigma=0.3)", "n_examples": 20, "attack": "pgd(steps=3)"}
    first = advbench.run(**given)
    assert advbench.run(**given).ran == 0
    again = advbench.run(**given | {"out": tmp_path / "again"})
    assert again.cells == first.cells
    for (one, examples), (other, others) in zip(records(first), records(again), strict=True):
        assert one.details == other.details
        for name, values in dataclasses.asdict(examples).items():
            np.testing.assert_array_equal(values, getattr(others, name), err_msg=name)
    plan = make_plan(make_config(**given))
    (calibration,) = [task for task in plan.tasks.values() if task.kind == "calibrate"]
    assert calibration.content.images.split == "validation"
    assert math.log2(records(first, matrix="white-box")[0][0].details["preparation"]["faithful"]["draws"]).is_integer()
    changed = make_plan(make_config(**given | {"draws": 2}))
    assert not [task for task in changed.tasks.values() if task.kind == "calibrate"]


def test_the_batch_of_a_model_without_a_gradient_is_measured_by_its_answers(small):
    given = {name: value for name, value in small.items() if name != "batch"}
    plan = make_plan(make_config(**given | {"defense": "masked(form='detached')"}))
    batches = {task.content.images.batch for task in plan.tasks.values() if task.kind == "craft"}
    assert len(batches) == 1
    assert batches.pop() >= 32
