"""What the harness sees in a model's gradients, and the flags that follow, from models built to deserve them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.attacks.threat import ThreatModel
from advbench.config import make_config
from advbench.defenses.defended import Defended, Surrogate
from advbench.diagnosis import IMAGES, diagnose
from advbench.plan import make_plan
from advbench.reports.boards import boards
from advbench.reports.cells import load
from advbench.scheduler import run_plan
from advbench.zoo.data import Split

CPU = torch.device("cpu")
THREAT = ThreatModel("linf", 0.1)


class Linear(nn.Module):
    """A linear classifier of 16 pixels into 4 classes, whose logits are multiplied by `scale`."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(16, 4), scale

    def forward(self, x):
        return self.scale * self.layer(x.flatten(1))


class Steps(Linear):
    """Pixels rounded to a few levels: a gradient that is zero everywhere."""

    def forward(self, x):
        return super().forward((8 * x).round() / 8 + 0 * x)


class Downhill(Linear):
    """The right logits with the gradient's sign turned round."""

    def forward(self, x):
        return super().forward(x.detach() + (x.detach() - x))


class Noisy(Linear):
    """Noise of torch's own generator, which the model does not declare."""

    def forward(self, x):
        return super().forward(x + 0.05 * torch.randn_like(x))


@pytest.fixture(scope="module")
def split():
    x = torch.rand(120, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return Split.of(x, Linear()(x).argmax(dim=1).detach())


def look(model, split, **changes):
    return diagnose(Defended(model, **changes), split, THREAT, seed=0, draws=2, device=CPU)


def test_an_honest_model_shows_nothing(split):
    found = look(Linear(), split)
    assert found == {"images": IMAGES, "zero_gradient": 0, "zero_margin_gradient": 0, "flat": 0, "unstable": 0}
    assert look(Linear(), split) == found


def test_only_images_that_the_model_gets_right_are_looked_at(split):
    wrong = Split(split.x, (split.y + (torch.arange(len(split)) % 4 != 0)) % 4, split.index)
    assert look(Linear(), wrong)["images"] == 30


def test_rounding_leaves_no_gradient_and_no_rising_loss(split):
    found = look(Steps(), split)
    assert (found["zero_gradient"], found["zero_margin_gradient"], found["flat"]) == (found["images"],) * 3


def test_saturation_takes_the_cross_entropys_gradient_and_leaves_the_margins(split):
    found = look(Linear(scale=1e5), split)
    assert found["zero_gradient"] > found["images"] / 2
    assert found["zero_margin_gradient"] == 0


def test_a_gradient_that_leads_downhill_is_seen(split):
    found = look(Downhill(), split)
    assert found["zero_gradient"] == 0
    assert found["flat"] > found["images"] / 2


def test_randomness_that_is_not_declared_is_seen(split):
    assert look(Noisy(), split)["unstable"] > 0


def test_a_surrogate_with_gradients_is_enough(split):
    surrogates = {"faithful": Surrogate(Steps()), "bpda": Surrogate(Linear())}
    found = look(Steps(), split, surrogates=surrogates)
    assert (found["zero_gradient"], found["flat"]) == (0, 0)


def test_logits_cut_from_the_images_count_as_without_a_gradient(split):
    class Cut(Linear):
        def forward(self, x):
            return super().forward(x.detach())

    found = look(Cut(), split)
    assert found["zero_gradient"] == found["flat"] == found["images"]


def test_the_model_comes_back_as_it_went_in(split):
    model = Linear().train()
    before = split.x.clone()
    look(model, split)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(split.x, before)


@pytest.mark.slow
def test_five_honest_models_have_at_most_one_flag_in_all(tmp_path, monkeypatch):
    """Trained in linf, in l2, by TRADES, at epsilon 0.1, and not defended at all."""
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path / "cache"))
    plan = make_plan(
        make_config(
            matrix="white-box,black-box",
            defense="none,pgd-linf,pgd-l2,trades,pgd-linf(epsilon=0.1)",
            attack="uniform-noise,fgsm,pgd(steps=5),pgd(steps=20),deepfool",
            epsilon="0.08,0.125",
            epochs=3,
            n_examples=150,
            substitute_rounds=1,
            batch=256,
            jobs=1,
            device="cpu",
            out=tmp_path / "out",
        )
    )
    assert not run_plan(plan).failures
    found = boards(load(plan.store, plan.cells))
    assert [len(board.standings) for board in found] == [5, 5]
    flagged = [(one.label, flag.name, flag.measured) for board in found for one in board.standings for flag in one.flags]
    assert len(flagged) <= 1, flagged
    records = [plan.store.read(key) for key in plan.cells]
    seen = [record.details["diagnosis"] for record in records if record.matrix == "white-box"]
    assert {found["images"] for found in seen} == {IMAGES}
    assert not any("diagnosis" in record.details for record in records if record.matrix != "white-box")
